"""Evaluate: the student and the expert on the same items (docs/method.md section 8)."""

import json
import time
from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.evaluation import remove_shown_items
from rebase.extraction import extract
from rebase.metrics import bootstrap_chrf, bootstrap_interval, score
from rebase.parameters import EvaluateParameters
from rebase.records import Adapter, Metric, Task
from rebase.sampling import even_positions
from rebase.student.formatting import render_prompt
from rebase.student.generation import generate
from rebase.student.handle import Student

#: The systems, in the order of the tables: the student as it came, and with the adapter.
STUDENT, EXPERT = "student", "expert"


def predict(
    task: Task, evaluation_set: pd.DataFrame, student: Student, adapter: Adapter, parameters: EvaluateParameters
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Let both systems answer the items, ``limit`` of them by even stride; the weights are loaded once.

    Items that the task's own examples show are left out first, and counted as ``shown_in_prompt``.

    Returns ``generations`` (``system``, ``item_id``, ``prompt``, ``raw``, ``answers``) and the stage's summary.
    """
    began = time.monotonic()
    unseen, shown = remove_shown_items(task, evaluation_set)
    if unseen.empty:
        raise RebaseError(f"evaluate: the examples of task {task.name!r} show every evaluation item. Write others.")
    items = unseen.iloc[even_positions(len(unseen), parameters.limit or len(unseen))]
    with student.open(adapter) as (model, tokenizer):
        prompts = [render_prompt(tokenizer, task, query) for query in items["query"]]

        def answer(system: str) -> pd.DataFrame:
            raw = generate(model, tokenizer, prompts, task.max_new_tokens, parameters.batch_size, f"{system} answers")
            return pd.DataFrame(
                {
                    "system": system,
                    "item_id": items["item_id"].to_list(),
                    "prompt": prompts,
                    "raw": raw,
                    "answers": items["answers"].to_list(),
                }
            )

        with model.disable_adapter():
            before = answer(STUDENT)
        after = answer(EXPERT)
    refused = {"shown_in_prompt": len(shown), "over_limit": len(unseen) - len(items)}
    summary = {
        "stage": "evaluate",
        "in": len(evaluation_set),
        "kept": len(items),
        "refused": {reason: count for reason, count in refused.items() if count},
        "seconds": round(time.monotonic() - began, 1),
    }
    return pd.concat([before, after], ignore_index=True), summary


def score_predictions(
    task: Task, generations: pd.DataFrame, parameters: EvaluateParameters
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Extract every answer and score it by the task's metrics.

    Returns ``predictions`` (``generations`` with ``extracted`` and one column a metric, 0 .. 1) and ``scores``:
    percentages with bootstrap intervals, for each system and for the paired difference expert - student.
    """
    predictions = generations.assign(extracted=[extract(raw, task.answer) for raw in generations["raw"]])
    accepted = [json.loads(answers) for answers in predictions["answers"]]
    for metric in task.metrics:
        predictions[metric] = [
            score(metric, extracted, answers)
            for extracted, answers in zip(predictions["extracted"], accepted, strict=True)
        ]
    by_system = {str(system): frame.set_index("item_id") for system, frame in predictions.groupby("system", sort=False)}
    draws = (parameters.bootstrap_samples, parameters.confidence, parameters.seed)

    def interval(metric: Metric, system: str, baseline: str | None = None) -> dict[str, float]:
        frame = by_system[system]
        other = None if baseline is None else by_system[baseline].loc[frame.index]
        if metric == "chrf":
            answers = [json.loads(accepted) for accepted in frame["answers"]]
            theirs = None if other is None else other["extracted"].to_list()
            return bootstrap_chrf(frame["extracted"].to_list(), answers, *draws, baseline=theirs)
        return bootstrap_interval((frame[metric] - (0 if other is None else other[metric])).to_list(), *draws)

    scores = {
        "task": task.name,
        "n": len(by_system[STUDENT]),
        "unit": "percent",
        "confidence": parameters.confidence,
        "systems": {system: {metric: interval(metric, system) for metric in task.metrics} for system in by_system},
        "differences": {
            f"{EXPERT} - {STUDENT}": {metric: interval(metric, EXPERT, STUDENT) for metric in task.metrics}
        },
    }
    return predictions, scores
