"""Evaluate: the student and the expert on the same items (docs/method.md section 8)."""

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from rebase.parameters import EvaluateParameters
from rebase.records import Adapter, Task
from rebase.student.answering import open_student
from rebase.student.formatting import render_prompt
from rebase.student.handle import Student
from rebase.tasks.evaluation_items import select_items
from rebase.tasks.scoring import aggregate, score_answers
from rebase.weights import resolve_dtype

#: The systems, in the order of the tables: the student as it came, and with the adapter.
STUDENT, EXPERT = "student", "expert"


def predict(
    task: Task, evaluation_items: pd.DataFrame, student: Student, adapter: Adapter, parameters: EvaluateParameters
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Let both systems answer the items, ``limit`` of them by even stride; the weights are loaded once.

    Items that the task's own examples show are left out first, and counted as ``shown_in_prompt``.

    Returns ``generations`` (``system``, ``item_id``, ``prompt``, ``raw``, ``answers``) and the stage's summary.
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


def answer_items(
    task: Task,
    items: pd.DataFrame,
    student: Student,
    systems: Mapping[str, Adapter | None],
    parameters: EvaluateParameters,
    few_shot: Collection[str] = (),
) -> pd.DataFrame:
    """What each of the ``systems`` writes, as ``generations``: the student with an adapter, or alone (None).

    Those in ``few_shot`` are shown the task's examples. The weights are loaded once for all.
    """
    tokenizer = student.tokenizer()
    prompts = {
        shots: [render_prompt(tokenizer, task, query, few_shot=shots) for query in items["query"]]
        for shots in {system in few_shot for system in systems}
    }
    adapters = {system: adapter for system, adapter in systems.items() if adapter}
    with open_student(task, student, adapters, parameters) as answer:
        return pd.concat(
            [
                as_generations(system, items, asked, answer(system if adapter else None, asked))
                for system, adapter in systems.items()
                for asked in [prompts[system in few_shot]]
            ],
            ignore_index=True,
        )


def as_generations(system: str, items: pd.DataFrame, prompts: Sequence[str], raw: Sequence[str]) -> pd.DataFrame:
    """What a system wrote to the prompts of the items, as lines of ``generations``."""
    return pd.DataFrame(
        {
            "system": system,
            "item_id": items["item_id"].to_list(),
            "prompt": prompts,
            "raw": raw,
            "answers": items["answers"].to_list(),
        }
    )


def score_predictions(
    task: Task, generations: pd.DataFrame, parameters: EvaluateParameters
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Extract every answer and score it by the task's metrics.

    Returns ``predictions`` (``generations`` with ``extracted`` and one column a metric, 0 .. 1) and ``scores``:
    percentages with bootstrap intervals, for each system and for the paired difference expert - student.
    """
    predictions = score_answers(task, generations)
    return predictions, aggregate(task, predictions, [(EXPERT, STUDENT)], parameters)
