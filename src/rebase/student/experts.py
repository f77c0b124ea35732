"""From examples to a trained expert: the steps that the pipelines train, students and compare share."""

import logging
from collections.abc import Mapping
from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.parameters import TrainParameters
from rebase.records import Adapter, Task, summarize_stage
from rebase.student.adapters import render_card, write_card, write_origin
from rebase.student.formatting import Target, render_completion, render_prompt
from rebase.student.handle import Student
from rebase.student.preflight import describe, inspect, matrix_rate, measure_shape
from rebase.student.tokenization import tokenize
from rebase.student.training import train_adapter
from rebase.weights import resolve_dtype

logger = logging.getLogger(__name__)


def format_examples(
    task: Task, examples: pd.DataFrame, excluded: Mapping[str, int], student: Student, target: Target
) -> pd.DataFrame:
    """Render each example for the student: ``example_id``, ``prompt``, ``completion``, in the order of the examples.

    ``target`` is what the student learns to write; examples may have no ``rationale``. ``excluded`` counts examples
    that were excluded before. Raises RebaseError if there are no examples.
    """
    if examples.empty and excluded:
        raise RebaseError(
            f"train: `train.exclude` removes every example of the task {task.name!r}: {dict(excluded)}. Exclude less, "
            "or make other examples; `kedro trace DATASET` shows which examples come from a dataset."
        )
    if examples.empty:
        raise RebaseError(
            f"train: there are no examples for the task {task.name!r}. See examples_rejected and retrieval_rejected "
            "for the reasons; fix the task, the sources or the teacher, and run from transform again."
        )
    tokenizer = student.tokenizer()
    # A missing rationale comes back from parquet as None or NaN.
    rationales = examples.reindex(columns=["rationale"])["rationale"].astype(object)
    answers = zip(examples["answer"], rationales.where(rationales.notna(), None), strict=True)
    return pd.DataFrame(
        {
            "example_id": examples["example_id"].to_list(),
            "prompt": [render_prompt(tokenizer, task, query) for query in examples["query"]],
            "completion": [render_completion(answer, rationale, target) for answer, rationale in answers],
        }
    )


def inspect_training(training_set: pd.DataFrame, student: Student, parameters: TrainParameters) -> dict[str, Any]:
    """Check and estimate the planned training, and log it.

    Returns the ``preflight`` record. Raises RebaseError if nothing can be learned from the examples.
    """
    tokenized = tokenize(student, training_set, parameters)
    shape = measure_shape(student, parameters)
    record = inspect(tokenized, student.tokenizer(), parameters, shape, matrix_rate(resolve_dtype(student.dtype)))
    logger.info("%s", describe(record))
    return record


def train_expert(
    task: Task,
    training_set: pd.DataFrame,
    examples: pd.DataFrame,
    excluded: Mapping[str, int],
    student: Student,
    preflight: Mapping[str, Any],
    parameters: TrainParameters,
    target: Target,
) -> tuple[Adapter, pd.DataFrame, dict[str, Any]]:
    """Train an adapter and write its card. Returns the adapter, the training log and the stage's summary.

    ``training_set`` and ``preflight`` come from the functions above, ``examples`` is what was formatted.
    """
    adapter, log, counts = train_adapter(student, training_set, parameters)
    del counts["in"]  # the summary counts the excluded examples too
    counts["rejected"] = {**counts["rejected"], **excluded}
    settings = parameters.model_copy(update={"target": target})
    write_card(adapter, render_card(task, student, examples, settings, counts))
    write_origin(adapter, task, examples)
    summary = summarize_stage(
        "train",
        **counts,
        **{name: preflight[name] for name in ("tokens", "tokens_with_loss", "padding_share")},
        base_model=student.name,
        dtype=resolve_dtype(student.dtype),
        target=target,
    )
    return adapter, log, summary
