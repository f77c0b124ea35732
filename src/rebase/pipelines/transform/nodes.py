"""Transform: request one example for each row, and keep those that pass all checks (docs/method.md section 5)."""

import logging
import math
from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.generation.filters.base import Rejection
from rebase.generation.generate import ExampleStage, GenerationResult, rejected_line
from rebase.generation.prompts.templates import TransformPrompt
from rebase.generation.rows import RowTransformer
from rebase.generation.verification import ProtectedTexts
from rebase.parameters import ContaminationParameters, TransformParameters
from rebase.records import EXAMPLE_COLUMNS, Task
from rebase.teacher.budget import Usage
from rebase.teacher.cached import CachedSession, CachedTeacher

logger = logging.getLogger(__name__)


def transform_rows(
    task: Task,
    retrieved: pd.DataFrame,
    evaluation_items: pd.DataFrame,
    teacher: CachedTeacher,
    transform_prompt: TransformPrompt,
    parameters: TransformParameters,
    contamination: ContaminationParameters,
    mapped_examples: pd.DataFrame | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Turn retrieved rows into examples, in their order, until ``max_examples`` have passed or the rows end.

    With ``mapped_examples`` these come first, unless the mode is ``rewrite``, and rows of their datasets are not sent;
    in the mode ``map`` no row is. Concurrency is limited by the teacher, and by the rows that the missing examples need
    at the rate of those that have passed. Until the first example, a hosted teacher gets at most ``patience`` rows;
    another one gets no further row after ``patience`` rejections.

    Returns the examples with their provenance; the rows without an example, each with its reason (``not_needed`` for
    the rows after the last example); the summary with the teacher's usage and the balance of the labels of all
    examples. Raises StageError if no example passed (``not_requested``: the rows after ``patience``), or the teacher
    answers no request.
    """
    ranked = retrieved.to_dict("records")
    mode = "rewrite" if mapped_examples is None else parameters.mode
    mapped = pd.DataFrame() if mapped_examples is None or mode == "rewrite" else mapped_examples
    if mode == "map" and mapped.empty:
        raise RebaseError("transform: there are no mapped examples. Run the pipeline map first.")
    stage = ExampleStage("transform", task, teacher, transform_prompt, mapped)
    rows, stage.rejected = _rows_to_rewrite(ranked, mapped, mode)
    not_sent = len(stage.rejected)
    transformer = RowTransformer(task, ranked, transform_prompt, parameters)
    protected = ProtectedTexts(task, evaluation_items["query"], contamination.ngram)

    async def generate(session: CachedSession, row: dict[str, Any]) -> GenerationResult:
        return await transformer.generate(session, row, protected)

    def concurrency(kept: int, rejected: int, _: Usage) -> int:
        passing = (kept + 1) / (kept + rejected + 1)
        limit = min(teacher.concurrency, math.ceil((parameters.max_examples - kept) / passing))
        if kept or parameters.patience is None:
            return limit
        remaining = max(0, parameters.patience - sum(line["response_key"] is not None for line in stage.rejected))
        return min(limit, remaining) if teacher.teacher.is_hosted or not remaining else limit

    stage.generate(rows, generate, parameters.max_examples, concurrency)
    unused = rows[len(stage.kept) + len(stage.rejected) - not_sent :]
    reason = Rejection("not_needed" if stage.kept else "not_requested")
    stage.rejected += [rejected_line(row, reason) for row in unused]
    unsent = f"The other {len(unused)} rows were not sent (`transform.patience`). " if unused else ""
    advice = (
        f"{unsent}`kedro run --pipelines=pilot --params=task={task.name}` shows prompts and responses; "
        "`examples_rejected` has the rows. "
        f"Check the instruction and the examples of the task and {transform_prompt.path}, use a stronger teacher, or "
        "retrieve more rows (`retrieve.top_n`)."
    )
    examples, rejected, summary = stage.conclude(
        None if len(mapped) else advice, consistency_filter=parameters.consistency_filter
    )
    if rows and len(stage.kept) < parameters.max_examples:
        logger.warning("transform: %d examples passed, %d were wanted", len(stage.kept), parameters.max_examples)
    if len(mapped):
        lines = [line for table in (mapped, examples) for line in table.to_dict("records")]
        examples = pd.DataFrame(lines, columns=EXAMPLE_COLUMNS)
    return examples, rejected, summary


def _rows_to_rewrite(
    ranked: list[dict[str, Any]], mapped: pd.DataFrame, mode: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows to send, in order, and the rejected lines of the others: those of mapped datasets, or all."""
    sources = set() if mapped.empty else set(zip(mapped["dataset"], mapped["config"], strict=True))
    rows, rejected = [], []
    for row in ranked:
        if (row["dataset"], row["config"]) in sources:
            rejected.append(rejected_line(row, Rejection("mapped_dataset")))
        elif mode == "map":
            rejected.append(rejected_line(row, Rejection("not_needed")))
        else:
            rows.append(row)
    return rows, rejected
