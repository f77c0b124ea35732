"""Train: examples as the student sees them, and the adapter learnt from them (docs/method.md section 7)."""

from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.parameters import TrainParameters
from rebase.records import Adapter, Task
from rebase.student.card import render_card, write_card
from rebase.student.formatting import render_completion, render_prompt
from rebase.student.handle import Student
from rebase.student.training import train_adapter


def format_training_set(
    task: Task, reasoned_examples: pd.DataFrame, student: Student, parameters: TrainParameters
) -> pd.DataFrame:
    """Render each example for the student: ``example_id``, ``prompt``, ``completion``, in the order of the examples.

    Raises RebaseError where there are no examples.
    """
    if reasoned_examples.empty:
        raise RebaseError(
            f"train: there are no examples for the task {task.name!r}. examples_refused and retrieval_refused say what "
            "was lost and why; mend the task, the sources or the teacher, and run from transform again."
        )
    tokenizer = student.tokenizer()
    # A missing rationale comes back from parquet as None or NaN.
    rationales = reasoned_examples["rationale"].astype(object).where(reasoned_examples["rationale"].notna(), None)
    return pd.DataFrame(
        {
            "example_id": reasoned_examples["example_id"].to_list(),
            "prompt": [render_prompt(tokenizer, task, query) for query in reasoned_examples["query"]],
            "completion": [
                render_completion(answer, rationale, parameters.target)
                for answer, rationale in zip(reasoned_examples["answer"], rationales, strict=True)
            ],
        }
    )


def train_student(
    task: Task,
    training_set: pd.DataFrame,
    reasoned_examples: pd.DataFrame,
    student: Student,
    parameters: TrainParameters,
) -> tuple[Adapter, pd.DataFrame, dict[str, Any]]:
    """Train the adapter and write its card. Returns the adapter, the training log and the stage's summary."""
    adapter, log, counts = train_adapter(student, training_set, parameters)
    write_card(adapter, render_card(task, student, reasoned_examples, parameters, counts))
    return adapter, log, {"stage": "train", **counts, "base_model": student.name, "target": parameters.target}
