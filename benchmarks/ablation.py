"""Measure what settings change: the main job as it comes and with each of them, side by side on the same items.

    python benchmarks/ablation.py retrieve.balance_labels=false [NAME=VALUE ...] [--task news_topic] [--seeds 3407 1]

Runs ``kedro run --pipelines=rebase`` in one temporary copy of the project: the runs share the datastore, the model and
the cached responses. Prints for each seed and setting the number of examples (for each label, if the task has labels),
the expert's mean score in percent, and its ratio and paired difference to the run as it comes. The last line is JSON.
"""

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from main_job import ROOT, copy_project, latest, run_job

from rebase.records import PREDICTION_COLUMNS
from rebase.tasks.metrics import bootstrap_interval, permutation_p

SAMPLES, CONFIDENCE = 2000, 0.95
AS_IT_COMES = "as it comes"


def measure(project: Path, task: str, seed: int, setting: str) -> tuple[list[str], pd.Series]:
    """Run the main job; return the answers of its examples, and the expert's score of each item, 0 to 1."""
    params = [f"task={task}", f"seed={seed}", *([] if setting == AS_IT_COMES else [setting])]
    run_job(project, ",".join(params))
    answers = pd.read_parquet(latest(project / "data/05_model_input" / task / "examples.parquet"))["answer"]
    predictions = pd.read_parquet(latest(project / "data/07_model_output" / task / "predictions.parquet"))
    metric = predictions.columns[len(PREDICTION_COLUMNS)]
    return answers.to_list(), predictions[predictions["system"] == "expert"].set_index("item_id")[metric]


def compare(scores: pd.Series, baseline: pd.Series, seed: int) -> dict[str, Any]:
    """Return a score with its interval, and its ratio and paired difference to the baseline's on the same items."""
    gains = (scores - baseline[scores.index]).to_numpy()
    draws = (SAMPLES, CONFIDENCE, seed)
    return {
        "score": bootstrap_interval(scores.to_list(), *draws),
        "ratio": round(scores.mean() / baseline.mean(), 2) if baseline.any() else None,
        "difference": {**bootstrap_interval(gains, *draws), "p": permutation_p(gains, seed)},
    }


def main() -> None:
    """Run each setting with each seed and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", metavar="NAME=VALUE")
    parser.add_argument("--task", default="news_topic")
    parser.add_argument("--seeds", nargs="+", type=int, default=[3407])
    options = parser.parse_args()
    task = yaml.safe_load((ROOT / f"data/01_raw/tasks/{options.task}.yml").read_text())
    labeled, lines = task["answer"]["type"] == "label", []
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        copy_project(project)
        for seed in options.seeds:
            baseline = None
            for setting in (AS_IT_COMES, *options.settings):
                answers, scores = measure(project, options.task, seed, setting)
                baseline = scores if baseline is None else baseline
                examples = dict(Counter(answers).most_common()) if labeled else len(answers)
                line = {"seed": seed, "setting": setting, "examples": examples}
                lines.append(line | compare(scores, baseline, seed))
    for line in lines:
        score, gain = line["score"], line["difference"]
        print(
            f"seed {line['seed']}  {line['setting']:<32} {score['value']:5.1f} [{score['low']}, {score['high']}]  "
            f"ratio {line['ratio']}  difference {gain['value']:+.1f} [{gain['low']}, {gain['high']}], p = {gain['p']}  "
            f"examples: {line['examples']}"
        )
    print(json.dumps(lines))


if __name__ == "__main__":
    main()
