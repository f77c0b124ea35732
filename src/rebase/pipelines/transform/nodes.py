"""Transform: ask the teacher for one example a row, keep those that stand every check (docs/method.md section 5)."""

import json
import logging
import math
from typing import Any

import pandas as pd

from rebase.generation.cues import Guidance, can_be_guided, find_cue, source_text_columns
from rebase.generation.generate import (
    Asked,
    Rejection,
    apply_consistency_filter,
    collect,
    conclude,
    examine,
    read_response,
    rejected_line,
)
from rebase.generation.prompts.parsing import Example, read_example
from rebase.generation.prompts.requests import cut_columns, transform_request
from rebase.generation.prompts.templates import TransformPrompt
from rebase.generation.verification import Known, names_label
from rebase.parameters import TransformParameters
from rebase.records import Task
from rebase.teacher.budget import Usage
from rebase.teacher.cached import CachedSession, CachedTeacher
from rebase.teacher.concurrency import run
from rebase.teacher.protocol import Failure, Response

logger = logging.getLogger(__name__)


def transform_rows(
    task: Task,
    retrieved: pd.DataFrame,
    evaluation_items: pd.DataFrame,
    teacher: CachedTeacher,
    transform_prompt: TransformPrompt,
    parameters: TransformParameters,
    contamination_ngram: int,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Turn retrieved rows into examples, best rows first, until ``max_examples`` have passed or the rows end.

    So many rows are asked about at once as the teacher can take, but no more than the examples that are wanting need
    by the share that has passed so far.

    Returns:
        The examples with their provenance; the rows that became none, each with its reason (``not_needed`` for
        those left when there were enough); the stage's summary, with what the teacher was asked and was paid, and
        with the balance of labels where there are some.

    Raises:
        RebaseError: Not one example passed, or the teacher answers nothing.

    """
    rows = retrieved.sort_values("rank", kind="stable").to_dict("records")
    known = Known.of(task, evaluation_items["query"], contamination_ngram)
    kept, rejected, usage = run(_ask_rows(task, rows, teacher, transform_prompt, parameters, known))
    rejected += [rejected_line(row, Rejection("not_needed")) for row in rows[len(kept) + len(rejected) :]]
    advice = (
        f"Look at the task's instruction and examples and at {transform_prompt.path}, take a stronger "
        "teacher, or retrieve more rows (`retrieve.top_n`)."
    )
    found = conclude("transform", task, teacher, transform_prompt, (kept, rejected, usage), advice)
    found[2]["consistency_filter"] = parameters.consistency_filter
    if len(kept) < parameters.max_examples:
        logger.warning("transform: %d examples passed, %d were wanted", len(kept), parameters.max_examples)
    return found


async def _ask_rows(
    task: Task,
    rows: list[dict[str, Any]],
    teacher: CachedTeacher,
    prompt: TransformPrompt,
    parameters: TransformParameters,
    known: Known,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Usage]:
    """The lines of ``examples``, without what all share, and of ``examples_rejected``; and what was asked."""
    guided = parameters.guided and can_be_guided(task)
    columns = source_text_columns(rows) if guided else {}

    def room(kept: int, rejected: int) -> int:
        wanted = parameters.max_examples - kept
        passing = (kept + 1) / (kept + rejected + 1)
        return min(teacher.concurrency, math.ceil(wanted / passing))

    async with teacher.open() as session:

        async def ask(row: dict[str, Any]) -> Asked:
            cue = find_cue(task, row, columns) if guided else None
            if guided and cue is None:
                return Asked(row, None, Rejection("nothing_to_ask_about"))
            asked = await ask_row(session, task, row, prompt, parameters, cue, known)
            if parameters.consistency_filter:
                return await apply_consistency_filter(session, task, asked, prompt.check, parameters.sampling)
            return asked

        kept, rejected = await collect(task, rows, ask, room, parameters.max_examples, session.usage, "transform")
    return kept, rejected, session.usage


async def ask_row(
    session: CachedSession,
    task: Task,
    row: dict[str, Any],
    prompt: TransformPrompt,
    parameters: TransformParameters,
    cue: Guidance | None,
    known: Known,
) -> Asked:
    """Ask the teacher for an example made from the row, and examine what it says."""
    response = await session.generate(transform_request(task, row, prompt, parameters, cue))
    cut = cut_columns(task, row, parameters, cue)
    return Asked(row, response, examine_response(task, row, response, cue, known), tuple(cut))


def examine_response(
    task: Task, row: dict[str, Any], response: Response | Failure, cue: Guidance | None, known: Known
) -> Example | Rejection:
    """The example that a row's response gives, or why it gives none."""
    example = read_response(response, lambda text: read_example(task, text, row["passage"], cue))
    if example is None:
        return Rejection("unfit_row")
    outcome = examine(task, example, known) if isinstance(example, Example) else example
    if isinstance(outcome, Example) and task.answer.labels and cue:
        cells = map(str, json.loads(row["row"]).values())
        if not names_label(outcome.answer, cells):
            # A weak teacher guesses where the row does not tell.
            return Rejection("label_not_in_row", outcome.answer)
    return outcome
