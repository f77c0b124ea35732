"""Transform: ask the teacher for one example a row, keep those that stand every check (docs/method.md section 5)."""

import json
import logging
import math
from typing import Any

import pandas as pd

from rebase.collecting import (
    Asked,
    Refusal,
    check_round_trip,
    collect,
    conclude,
    examine,
    read_reply,
    refused_line,
)
from rebase.parameters import TransformParameters
from rebase.prompts import (
    Example,
    Led,
    TransformPrompt,
    can_be_led,
    cut_columns,
    find_lead,
    own_text_columns,
    read_example,
    transform_request,
)
from rebase.records import Task
from rebase.teacher.budget import Usage
from rebase.teacher.flow import run
from rebase.teacher.protocol import Failure, Reply
from rebase.teacher.stored import StoredSession, StoredTeacher
from rebase.verification import Known, names_label

logger = logging.getLogger(__name__)


def transform_rows(
    task: Task,
    retrieved: pd.DataFrame,
    evaluation_set: pd.DataFrame,
    teacher: StoredTeacher,
    transform_prompt: dict[str, Any],
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
    prompt = TransformPrompt.parse(transform_prompt, "data/01_raw/prompts/transform.yml")
    rows = retrieved.sort_values("rank", kind="stable").to_dict("records")
    known = Known.of(task, evaluation_set["query"], contamination_ngram)
    kept, refused, usage = run(_ask_rows(task, rows, teacher, prompt, parameters, known))
    refused += [refused_line(row, Refusal("not_needed")) for row in rows[len(kept) + len(refused) :]]
    advice = (
        "Look at the task's instruction and examples and at data/01_raw/prompts/transform.yml, take a stronger "
        "teacher, or retrieve more rows (`retrieve.top_n`)."
    )
    found = conclude("transform", task, teacher, prompt, (kept, refused, usage), advice)
    found[2]["round_trip"] = parameters.round_trip
    if len(kept) < parameters.max_examples:
        logger.warning("transform: %d examples passed, %d were wanted", len(kept), parameters.max_examples)
    return found


async def _ask_rows(
    task: Task,
    rows: list[dict[str, Any]],
    teacher: StoredTeacher,
    prompt: TransformPrompt,
    parameters: TransformParameters,
    known: Known,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Usage]:
    """The lines of ``examples``, without what all share, and of ``examples_refused``; and what was asked."""
    led = parameters.led and can_be_led(task)
    columns = own_text_columns(rows) if led else {}

    def room(kept: int, refused: int) -> int:
        wanted = parameters.max_examples - kept
        passing = (kept + 1) / (kept + refused + 1)
        return min(teacher.ahead, math.ceil(wanted / passing))

    async with teacher.open() as session:

        async def ask(row: dict[str, Any]) -> Asked:
            lead = find_lead(task, row, columns) if led else None
            if led and lead is None:
                return Asked(row, None, Refusal("nothing_to_ask_about"))
            asked = await ask_row(session, task, row, prompt, parameters, lead, known)
            if parameters.round_trip:
                return await check_round_trip(session, task, asked, prompt.check, parameters.sampling)
            return asked

        kept, refused = await collect(task, rows, ask, room, parameters.max_examples, session.usage, "transform")
    return kept, refused, session.usage


async def ask_row(
    session: StoredSession,
    task: Task,
    row: dict[str, Any],
    prompt: TransformPrompt,
    parameters: TransformParameters,
    lead: Led | None,
    known: Known,
) -> Asked:
    """Ask the teacher for an example made from the row, and examine what it says."""
    reply = await session.ask(transform_request(task, row, prompt, parameters, lead))
    cut = cut_columns(task, row, parameters, lead)
    return Asked(row, reply, examine_reply(task, row, reply, lead, known), tuple(cut))


def examine_reply(
    task: Task, row: dict[str, Any], reply: Reply | Failure, lead: Led | None, known: Known
) -> Example | Refusal:
    """The example that a row's reply gives, or why it gives none."""
    example = read_reply(reply, lambda text: read_example(task, text, row["passage"], lead))
    if example is None:
        return Refusal("unfit_row")
    outcome = examine(task, example, known) if isinstance(example, Example) else example
    if isinstance(outcome, Example) and task.answer.labels and lead:
        cells = map(str, json.loads(row["row"]).values())
        if not names_label(outcome.answer, cells):
            # A weak teacher guesses where the row does not tell.
            return Refusal("label_not_in_row", outcome.answer)
    return outcome
