"""Evaluate: the student and the expert on the same items (docs/method.md section 8)."""

import time
from typing import Any

import pandas as pd

from rebase.parameters import EvaluateParameters
from rebase.records import Adapter, Task, summarize_stage
from rebase.student.answering import EXPERT, STUDENT, answer_items
from rebase.student.handle import Student
from rebase.tasks.evaluation_items import select_items
from rebase.tasks.scoring import aggregate, score_answers
from rebase.weights import resolve_dtype


def predict(
    task: Task, evaluation_items: pd.DataFrame, student: Student, adapter: Adapter, parameters: EvaluateParameters
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Generate both systems' answers to the selected items (``select_items``); the weights are loaded once.

    Returns ``generations`` and the summary, with the version of the adapter, by which ``kedro trace`` finds it.
    """
    started = time.monotonic()
    items, rejected = select_items(task, evaluation_items, parameters.limit)
    generations = answer_items(task, items, student, {STUDENT: None, EXPERT: adapter}, parameters)
    summary = summarize_stage(
        "evaluate",
        kept=len(items),
        rejected=rejected,
        seconds=time.monotonic() - started,
        dtype=resolve_dtype(student.dtype),
        adapter=adapter.folder.parent.name,
    )
    return generations, summary


def score_predictions(
    task: Task, generations: pd.DataFrame, parameters: EvaluateParameters
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Extract every answer and score it by the task's metrics.

    Returns ``predictions`` and ``scores``: percentages with bootstrap intervals, for each system and for the paired
    difference expert - student.
    """
    predictions = score_answers(task, generations)
    return predictions, aggregate(task, predictions, [(EXPERT, STUDENT)], parameters)


def collect_item_scores(task: Task, predictions: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the task's partition of ``item_scores``: each system's score per item and metric, 0 to 1."""
    return {task.name: predictions[["system", "item_id", *task.metrics]]}
