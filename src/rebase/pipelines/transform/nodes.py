"""Transform: ask the teacher for one example a row, keep those that stand every check (docs/method.md section 5)."""

import json
import logging
import math
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from tqdm import tqdm

from rebase.errors import RebaseError
from rebase.parameters import TransformParameters
from rebase.prompts import (
    Example,
    Led,
    TransformPrompt,
    can_be_led,
    check_request,
    cut_columns,
    find_lead,
    own_text_columns,
    prompt_hash,
    read_check,
    read_example,
    transform_request,
)
from rebase.records import Task
from rebase.teacher.budget import Usage, progress
from rebase.teacher.flow import in_order, run
from rebase.teacher.protocol import Failure, Reply, why_unreadable
from rebase.teacher.stored import StoredSession, StoredTeacher
from rebase.text import normalise
from rebase.verification import Known, agrees, label_balance, names_label, refuse_example, tidy_answer

logger = logging.getLogger(__name__)

_PROVENANCE = [
    "row_id", "dataset", "config", "revision", "row_index", "licence", "rank", "score", "score_dataset", "score_query",
    "score_answer", "query_column", "answer_column",
]  # fmt: skip
EXAMPLE_COLUMNS = [
    "example_id", *_PROVENANCE, "fields", "query", "answer", "cut", "teacher", "prompt_hash", "reply_key",
    "input_tokens", "output_tokens", "dollars",
]  # fmt: skip
REFUSED_COLUMNS = ["row_id", "dataset", "rank", "reason", "detail", "reply_key", "text"]


@dataclass(frozen=True)
class Refusal:
    """Why a row becomes no example."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Asked:
    """A row, the teacher's reply (None for a row that it was not asked about), and what came of it.

    ``cut`` names the row's columns that the teacher was not shown whole.
    """

    row: dict[str, Any]
    reply: Reply | Failure | None
    outcome: Example | Refusal
    cut: tuple[str, ...] = ()


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
    by_reason = Counter(line["reason"] for line in refused)
    if not kept:
        raise RebaseError(_explain_nothing(task, teacher, by_reason, refused))
    if len(kept) < parameters.max_examples:
        logger.warning("transform: %d examples passed, %d were wanted", len(kept), parameters.max_examples)
    not_needed = rows[len(kept) + len(refused) :]
    refused += [_refused_line(Asked(row, None, Refusal("not_needed"))) for row in not_needed]
    if not_needed:
        by_reason["not_needed"] = len(not_needed)
    made = {"teacher": f"{teacher.provider}/{teacher.model}", "prompt_hash": prompt_hash(prompt, task)}
    examples = pd.DataFrame([line | made for line in kept], columns=EXAMPLE_COLUMNS)
    summary = {
        "stage": "transform",
        "in": len(rows),
        "kept": len(kept),
        "refused": dict(by_reason.most_common()),
        **made,
        "usage": usage.summary(),
    }
    if task.answer.labels:
        summary["labels"] = balance = label_balance(task.answer.labels, examples["answer"])
        if balance["missing"]:
            logger.warning("transform: no example has the label %s", ", ".join(balance["missing"]))
    return examples, pd.DataFrame(refused, columns=REFUSED_COLUMNS), summary


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
    seen: set[str] = set()
    kept: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []

    def room() -> int:
        wanted = parameters.max_examples - len(kept)
        passing = (len(kept) + 1) / (len(kept) + len(refused) + 1)
        return min(teacher.ahead, math.ceil(wanted / passing))

    async with teacher.open() as session:

        async def ask(row: dict[str, Any]) -> Asked:
            lead = find_lead(task, row, columns) if led else None
            if led and lead is None:
                return Asked(row, None, Refusal("nothing_to_ask_about"))
            asked = await ask_row(session, task, row, prompt, parameters, lead, known)
            if parameters.round_trip and isinstance(asked.outcome, Example):
                return await check_round_trip(session, task, asked, prompt, parameters)
            return asked

        with tqdm(total=parameters.max_examples, desc="transform", unit="example") as bar:
            async with aclosing(in_order(ask, rows, room)) as answers:
                async for asked in answers:
                    outcome = asked.outcome
                    if isinstance(outcome, Example) and (query := normalise(task.render_query(outcome.fields))) in seen:
                        outcome = Refusal("duplicate", outcome.answer)
                    if isinstance(outcome, Example):
                        seen.add(query)
                        kept.append(_example_line(task, asked.row, asked.reply, outcome, asked.cut))
                        bar.update()
                    else:
                        refused.append(_refused_line(replace(asked, outcome=outcome)))
                    share = parameters.max_examples / max(1, len(kept))
                    bar.set_postfix_str(progress(len(kept), len(refused), share, session.usage))
                    if len(kept) == parameters.max_examples:
                        break
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
    return Asked(row, reply, examine(task, row, reply, lead, known), tuple(cut))


def examine(
    task: Task, row: dict[str, Any], reply: Reply | Failure, lead: Led | None, known: Known
) -> Example | Refusal:
    """The example that a row's reply gives, or why it gives none."""
    if isinstance(reply, Failure) or reply.finish != "stop":
        return _refuse_reply(reply)
    try:
        example = read_example(task, reply.text, row["passage"], lead)
    except ValueError as error:
        return Refusal("not_as_asked", str(error))
    if example is None:
        return Refusal("unfit_row")
    answer = tidy_answer(task, example.fields, example.answer)
    reason = refuse_example(task, example.fields, answer, known)
    cells = map(str, json.loads(row["row"]).values())
    if not reason and task.answer.labels and lead and not names_label(answer, cells):
        # A weak teacher guesses where the row does not tell.
        reason = "label_not_in_row"
    return Refusal(reason, answer) if reason else Example(example.fields, answer)


async def check_round_trip(
    session: StoredSession, task: Task, asked: Asked, prompt: TransformPrompt, parameters: TransformParameters
) -> Asked:
    """Have the teacher answer the new query without the answer: where it does not agree with itself, refuse."""
    example = asked.outcome
    assert isinstance(example, Example)  # noqa: S101
    reply = await session.ask(check_request(task, example.fields, prompt.check, parameters.sampling))
    if isinstance(reply, Failure) or reply.finish != "stop":
        return replace(asked, outcome=_refuse_reply(reply))
    try:
        answer = read_check(task, example.fields, reply.text)
    except ValueError as error:
        return replace(asked, outcome=Refusal("not_as_asked", str(error)))
    if agrees(task, example.fields, example.answer, answer):
        return asked
    return replace(asked, outcome=Refusal("round_trip_disagrees", f"{answer} for {example.answer}"))


def _refuse_reply(reply: Reply | Failure) -> Refusal:
    return Refusal(why_unreadable(reply), reply.reason if isinstance(reply, Failure) else "")


def _example_line(
    task: Task, row: dict[str, Any], reply: Reply | Failure | None, example: Example, cut: tuple[str, ...]
) -> dict[str, Any]:
    """A line of ``examples``, without what all of them share."""
    spent = {name: getattr(reply, name) for name in ("input_tokens", "output_tokens", "dollars")}
    return {
        "example_id": row["row_id"],
        **{name: row[name] for name in _PROVENANCE},
        "fields": json.dumps(example.fields, ensure_ascii=False),
        "query": task.render_query(example.fields),
        "answer": example.answer,
        "cut": json.dumps(cut, ensure_ascii=False),
        "reply_key": reply.key if reply else None,
        **spent,
    }


def _refused_line(asked: Asked) -> dict[str, Any]:
    assert isinstance(asked.outcome, Refusal)  # noqa: S101
    return {
        **{name: asked.row[name] for name in ("row_id", "dataset", "rank")},
        "reason": asked.outcome.reason,
        "detail": asked.outcome.detail,
        "reply_key": asked.reply.key if asked.reply else None,
        "text": asked.reply.text if isinstance(asked.reply, Reply) else None,
    }


def _explain_nothing(task: Task, teacher: StoredTeacher, by_reason: Counter[str], refused: list[dict[str, Any]]) -> str:
    """What to tell a user whose run gave no example at all."""
    name = f"the teacher {teacher.provider}/{teacher.model}"
    if by_reason["teacher_failed"] and not any(line["text"] for line in refused):
        words = Counter(line["detail"] for line in refused if line["reason"] == "teacher_failed").most_common(1)[0][0]
        return (
            f"transform: {name} answered none of {by_reason['teacher_failed']} requests. It says: {words}\n"
            "Look at `teacher` in globals.yml and at the credentials, then run again: nothing is paid twice."
        )
    return (
        f"transform: {name} returned nothing usable for task {task.name!r}: {dict(by_reason.most_common())}. "
        "Look at the task's instruction and examples and at data/01_raw/prompts/transform.yml, take a stronger "
        "teacher, or retrieve more rows (`retrieve.top_n`)."
    )
