"""Train: format the examples for the student, and train its adapter on them (docs/method.md section 7)."""

from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.generation.filters.exclusion import remove_excluded
from rebase.parameters import TrainParameters
from rebase.records import Adapter, Task
from rebase.student.formatting import Target, format_examples
from rebase.student.handle import Student
from rebase.student.training import train_expert


def format_training_set(
    task: Task, reasoned_examples: pd.DataFrame, student: Student, parameters: TrainParameters, target: Target
) -> pd.DataFrame:
    """Format the examples as ``format_examples`` does, without those that ``parameters.exclude`` names."""
    examples, _ = remove_excluded(reasoned_examples, parameters.exclude)
    return format_examples(task, examples, student, target)


def train_student(
    task: Task,
    training_set: pd.DataFrame,
    reasoned_examples: pd.DataFrame,
    student: Student,
    preflight: dict[str, Any],
    parameters: TrainParameters,
    target: Target,
) -> tuple[Adapter, pd.DataFrame, dict[str, Any]]:
    """Train the adapter and write its card. Returns the adapter, the training log and the stage's summary.

    ``preflight`` is an input so that checks come before training. Raises RebaseError if the training set has examples
    that ``parameters.exclude`` names.
    """
    examples, excluded = remove_excluded(reasoned_examples, parameters.exclude)
    excluded_ids = reasoned_examples.loc[~reasoned_examples.index.isin(examples.index), "example_id"]
    if training_set["example_id"].isin(excluded_ids).any():
        raise RebaseError(
            "train: the training set was formatted with another `train.exclude` and has examples that are excluded "
            "now. Run from the node format_training_set on."
        )
    return train_expert(task, training_set, examples, excluded, student, preflight, parameters, target)
