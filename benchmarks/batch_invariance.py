"""Measure the effect of batch size and number format on greedy answers and on the score.

    python benchmarks/batch_invariance.py [--task reading_qa] [--items FILE] [--adapter FOLDER] [--count 300]
        [--batch-sizes 1 4 16] [--dtypes float32 bfloat16]

The items are a systematic sample of the task's evaluation items, or of ``--items`` (JSONL or Parquet). For each number
format and batch size, one line of JSON gives the score by the task's first metric in percent, the share of answers that
equal the first line's (float32, batch size 1), and the number of items whose score differs from the first line's.
"""

import argparse
import json
from pathlib import Path

import pandas as pd
import yaml
from generate import MODEL, MODELS, ROOT, read_items

from rebase.records import Adapter, Task
from rebase.student.formatting import render_prompt
from rebase.student.generation import generate
from rebase.student.handle import Student
from rebase.tasks.scoring import score_answers
from rebase.weights import machine_name


def main() -> None:
    """Answer the items once for each number format and batch size, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="reading_qa")
    parser.add_argument("--items", type=Path, help="a file of items (default: the task's evaluation items)")
    parser.add_argument("--adapter", type=Path, help="a folder with an adapter (default: the untrained student)")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()
    task = Task.parse(yaml.safe_load((ROOT / f"data/01_raw/tasks/{options.task}.yml").read_text()), options.task)
    items = read_items(task, options.items or ROOT / task.evaluation.source, options.count)
    print(f"{machine_name()}; {options.model}; task {options.task}; {len(items)} items")
    first: tuple[list[str], pd.Series] | None = None
    for dtype in options.dtypes:
        student = Student(options.model, None, MODELS, MODELS, dtype)
        adapters = {"expert": Adapter(options.adapter, student.name)} if options.adapter else {}
        with student.open(adapters) as (model, tokenizer):
            prompts = [render_prompt(tokenizer, task, query) for query in items["query"]]
            for size in options.batch_sizes:
                texts = generate(model, tokenizer, prompts, task.max_new_tokens, size, f"{dtype}, batch {size}")
                item_scores = scores(task, items, texts)
                first_texts, first_scores = first = first or (texts, item_scores)
                same = sum(text == other for text, other in zip(texts, first_texts, strict=True))
                result = {
                    "dtype": dtype,
                    "batch_size": size,
                    "score": round(100 * item_scores.mean(), 2),
                    "identical": round(same / len(items), 4),
                    "items_that_score_otherwise": int((item_scores != first_scores).sum()),
                }
                print(json.dumps(result), flush=True)


def scores(task: Task, items: pd.DataFrame, texts: list[str]) -> pd.Series:
    """The first metric of each answer, 0 .. 1."""
    answered = items.assign(system="student", prompt=items["query"], raw_output=texts)
    return score_answers(task, answered)[task.metrics[0]]


if __name__ == "__main__":
    main()
