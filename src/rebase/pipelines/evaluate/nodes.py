"""Evaluate: the student and the expert on the same items (docs/method.md section 8)."""

import time
from typing import Any

import pandas as pd

from rebase.parameters import EvaluateParameters
from rebase.records import Adapter, Task
from rebase.student.answering import EXPERT, STUDENT, answer_items
from rebase.student.handle import Student
from rebase.tasks.evaluation_items import select_items
from rebase.tasks.scoring import aggregate, score_answers
from rebase.weights import resolve_dtype


def predict(
    task: Task, evaluation_items: pd.DataFrame, student: Student, adapter: Adapter, parameters: EvaluateParameters
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Let both systems answer the items, ``limit`` of them by even stride; the weights are loaded once.

    Items that the task's own examples show are left out first, and counted as ``shown_in_prompt``.

    Returns ``generations`` (``system``, ``item_id``, ``prompt``, ``raw_output``, ``references``) and the stage's summary.
    """
    began = time.monotonic()
    items, rejected = select_items(task, evaluation_items, parameters.limit)
    generations = answer_items(task, items, student, {STUDENT: None, EXPERT: adapter}, parameters)
    summary = {
        "stage": "evaluate",
        "in": len(evaluation_items),
        "kept": len(items),
        "rejected": rejected,
        "dtype": resolve_dtype(student.dtype),
        "adapter": adapter.folder.parent.name,  # its version: `kedro trace` leads from a prediction to it
        "seconds": round(time.monotonic() - began, 1),
    }
    return generations, summary


def score_predictions(
    task: Task, generations: pd.DataFrame, parameters: EvaluateParameters
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Extract every answer and score it by the task's metrics.

    Returns ``predictions`` (``generations`` with ``extracted`` and one column a metric, 0 .. 1) and ``scores``:
    percentages with bootstrap intervals, for each system and for the paired difference expert - student.
    """
    predictions = score_answers(task, generations)
    return predictions, aggregate(task, predictions, [(EXPERT, STUDENT)], parameters)
