"""Transform: request one example for each row, and keep those that pass all checks (docs/method.md section 5)."""

import json
import logging
import math
from typing import Any

import pandas as pd

from rebase.generation.cues import Guidance, can_be_guided, find_cue, source_text_columns
from rebase.generation.filters.base import Rejection
from rebase.generation.generate import (
    ExampleStage,
    GenerationResult,
    apply_consistency_filter,
    read_response,
    rejected_line,
    verify,
)
from rebase.generation.prompts.parsing import Example, read_example
from rebase.generation.prompts.requests import transform_request, visible_cells
from rebase.generation.prompts.templates import TransformPrompt
from rebase.generation.verification import ProtectedTexts, names_label
from rebase.parameters import ContaminationParameters, TransformParameters
from rebase.records import Task
from rebase.teacher.budget import Usage
from rebase.teacher.cached import CachedSession, CachedTeacher
from rebase.teacher.protocol import Failure, Response

logger = logging.getLogger(__name__)


def transform_rows(
    task: Task,
    retrieved: pd.DataFrame,
    evaluation_items: pd.DataFrame,
    teacher: CachedTeacher,
    transform_prompt: TransformPrompt,
    parameters: TransformParameters,
    contamination: ContaminationParameters,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Turn retrieved rows into examples, best rows first, until ``max_examples`` have passed or the rows end.

    Concurrency is limited by the teacher, and by the rows that the missing examples need at the rate of those that have
    passed.

    Returns the examples with their provenance; the rows without an example, each with its reason (``not_needed`` for
    the rows after the last example); the summary with the teacher's usage and the balance of labels. Raises RebaseError
    if no example passed, or the teacher answers no request.
    """
    stage = ExampleStage("transform", task, teacher, transform_prompt)
    rows = retrieved.sort_values("rank", kind="stable").to_dict("records")
    protected = ProtectedTexts(task, evaluation_items["query"], contamination.ngram)
    guided = parameters.guided and can_be_guided(task)
    columns = source_text_columns(rows) if guided else {}

    async def generate(session: CachedSession, row: dict[str, Any]) -> GenerationResult:
        cue = find_cue(task, row, columns) if guided else None
        if guided and cue is None:
            return GenerationResult(row, None, Rejection("no_cue"))
        response = await session.generate(transform_request(task, row, transform_prompt, parameters, cue))
        outcome = _read_outcome(task, row, response, cue, protected)
        _, cut = visible_cells(task, row, parameters, cue)
        result = GenerationResult(row, response, outcome, {"cut": json.dumps(cut, ensure_ascii=False)})
        if parameters.consistency_filter:
            return await apply_consistency_filter(session, task, result, transform_prompt.check, parameters.sampling)
        return result

    def concurrency(kept: int, rejected: int, _: Usage) -> int:
        passing = (kept + 1) / (kept + rejected + 1)
        return min(teacher.concurrency, math.ceil((parameters.max_examples - kept) / passing))

    stage.generate(rows, generate, parameters.max_examples, concurrency)
    unused = rows[len(stage.kept) + len(stage.rejected) :]
    stage.rejected += [rejected_line(row, Rejection("not_needed")) for row in unused]
    tables = stage.conclude(
        f"Check the instruction and the examples of the task and {transform_prompt.path}, use a stronger teacher, or "
        "retrieve more rows (`retrieve.top_n`).",
        consistency_filter=parameters.consistency_filter,
    )
    if len(stage.kept) < parameters.max_examples:
        logger.warning("transform: %d examples passed, %d were wanted", len(stage.kept), parameters.max_examples)
    return tables


def _read_outcome(
    task: Task, row: dict[str, Any], response: Response | Failure, cue: Guidance | None, protected: ProtectedTexts
) -> Example | Rejection:
    """The example in the response about a row, or why there is none."""
    example = read_response(response, lambda text: read_example(task, text, row["passage"], cue))
    if example is None:
        return Rejection("unfit_row")
    outcome = verify(task, example, protected)
    if isinstance(outcome, Example) and task.answer.labels and cue:
        # A weak teacher guesses if the row does not contain the label.
        cells = map(str, json.loads(row["row"]).values())
        return outcome if names_label(outcome.answer, cells) else Rejection("label_not_in_row", outcome.answer)
    return outcome
