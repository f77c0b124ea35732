"""Train: examples as the student sees them, and the adapter learned from them (docs/method.md section 7)."""

import logging
from collections import Counter
from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.generation.filters import why_excluded
from rebase.parameters import ExcludeParameters, TrainParameters
from rebase.records import Adapter, Task
from rebase.student.adapters import render_card, write_card, write_origin
from rebase.student.formatting import Target, render_completion, render_prompt
from rebase.student.handle import Student
from rebase.student.preflight import describe, inspect, matrix_rate, measure_shape
from rebase.student.tokenization import encode
from rebase.student.training import train_adapter
from rebase.weights import resolve_dtype

logger = logging.getLogger(__name__)


def format_training_set(
    task: Task, reasoned_examples: pd.DataFrame, student: Student, parameters: TrainParameters, target: Target
) -> pd.DataFrame:
    """Render each example for the student: ``example_id``, ``prompt``, ``completion``, in the order of the examples.

    ``target`` is what the student learns to write; examples may have no ``rationale``. What ``parameters.exclude``
    names is left out. Raises RebaseError where there are no examples.
    """
    if reasoned_examples.empty:
        raise RebaseError(
            f"train: there are no examples for the task {task.name!r}. examples_rejected and retrieval_rejected say what "
            "was lost and why; mend the task, the sources or the teacher, and run from transform again."
        )
    reasoned_examples, excluded = remove_excluded(reasoned_examples, parameters.exclude)
    if reasoned_examples.empty:
        raise RebaseError(
            f"train: `train.exclude` takes out every example of the task {task.name!r}: {excluded}. Exclude less, or "
            "make other examples; `kedro trace DATASET` says what comes from where."
        )
    tokenizer = student.tokenizer()
    # A missing rationale comes back from parquet as None or NaN.
    rationales = reasoned_examples.reindex(columns=["rationale"])["rationale"].astype(object)
    return pd.DataFrame(
        {
            "example_id": reasoned_examples["example_id"].to_list(),
            "prompt": [render_prompt(tokenizer, task, query) for query in reasoned_examples["query"]],
            "completion": [
                render_completion(answer, rationale, target)
                for answer, rationale in zip(
                    reasoned_examples["answer"], rationales.where(rationales.notna(), None), strict=True
                )
            ],
        }
    )


def remove_excluded(examples: pd.DataFrame, exclude: ExcludeParameters) -> tuple[pd.DataFrame, dict[str, int]]:
    """The examples without those of excluded datasets and licenses, and how many these are, by reason."""
    reasons = [
        why_excluded(dataset, license, exclude)
        for dataset, license in zip(examples["dataset"], examples["license"], strict=True)
    ]
    return examples[[reason is None for reason in reasons]], dict(Counter(filter(None, reasons)))


def inspect_training(training_set: pd.DataFrame, student: Student, parameters: TrainParameters) -> dict[str, Any]:
    """Look at what is about to be trained, say it in the log and keep it.

    Raises RebaseError where nothing good can be learned from the examples.
    """
    encoded = encode(student, training_set, parameters)
    shape = measure_shape(student, parameters)
    record = inspect(encoded, student.tokenizer(), parameters, shape, matrix_rate(resolve_dtype(student.dtype)))
    logger.info("%s", describe(record))
    return record


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

    ``preflight`` comes first: nothing is trained before it has found nothing wrong. Raises RebaseError where the
    training set holds what ``parameters.exclude`` names.
    """
    examples, excluded = remove_excluded(reasoned_examples, parameters.exclude)
    taken_out = reasoned_examples.loc[~reasoned_examples.index.isin(examples.index), "example_id"]
    if training_set["example_id"].isin(taken_out).any():
        raise RebaseError(
            "train: the training set was formatted with another `train.exclude` and holds what is excluded now. Run "
            "from the node format_training_set on."
        )
    adapter, log, counts = train_adapter(student, training_set, parameters)
    counts = {**counts, "in": counts["in"] + len(taken_out), "rejected": {**counts["rejected"], **excluded}}
    write_card(adapter, render_card(task, student, examples, parameters.model_copy(update={"target": target}), counts))
    write_origin(adapter, task, examples)
    seen = {name: preflight[name] for name in ("tokens", "tokens_with_loss", "padding_share")}
    origin = {"base_model": student.name, "dtype": resolve_dtype(student.dtype), "target": target}
    return adapter, log, {"stage": "train", **counts, **seen, **origin}
