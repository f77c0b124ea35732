"""Transform: ask the teacher for one example a row, keep those that stand every check (docs/method.md section 5)."""

import json
import logging
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
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
    find_lead,
    own_text_columns,
    prompt_hash,
    read_example,
    transform_request,
)
from rebase.records import Task
from rebase.teacher.protocol import Failure, Reply, Request, Session, Teacher
from rebase.text import normalise
from rebase.verification import Known, names_label, refuse_example, tidy_answer

logger = logging.getLogger(__name__)

_PROVENANCE = ["row_id", "dataset", "config", "revision", "row_index", "licence", "score", "rank"]
EXAMPLE_COLUMNS = [
    "example_id", *_PROVENANCE, "fields", "query", "answer", "teacher", "prompt_hash", "reply_key",
    "input_tokens", "output_tokens",
]  # fmt: skip
REFUSED_COLUMNS = ["row_id", "dataset", "rank", "reason", "detail", "reply_key", "text"]

#: After so many failures and not one reply the teacher is taken to be out of order.
_FAILURES_TO_STOP = 20


@dataclass(frozen=True)
class Asked:
    """A row, what the teacher was led to in it, and its reply: None for a row that it was not asked about."""

    row: dict[str, Any]
    lead: Led | None
    reply: Reply | Failure | None


@dataclass(frozen=True)
class Refusal:
    """Why a row becomes no example."""

    reason: str
    detail: str = ""


def transform_rows(
    task: Task,
    retrieved: pd.DataFrame,
    evaluation_set: pd.DataFrame,
    teacher: Teacher,
    transform_prompt: dict[str, Any],
    parameters: TransformParameters,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Turn retrieved rows into examples, best rows first, until ``max_examples`` have passed or the rows end.

    Requests are made as the teacher takes them, so that few more rows are asked about than are needed.

    Returns:
        The examples with their provenance; the rows that became none, each with its reason (``not_needed`` for
        those left when there were enough); the stage's summary, with the balance of labels where there are some.

    Raises:
        RebaseError: Not one example passed, or the teacher answers nothing.

    """
    prompt = TransformPrompt.parse(transform_prompt, "data/01_raw/prompts/transform.yml")
    rows = retrieved.sort_values("rank", kind="stable").to_dict("records")
    known = Known.of(task, evaluation_set["query"])
    made = {"teacher": f"{teacher.provider}/{teacher.model}", "prompt_hash": prompt_hash(prompt, task)}
    seen: set[str] = set()
    kept: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    with teacher.open() as session, tqdm(total=parameters.max_examples, desc="transform", unit="example") as bar:
        for asked in ask_rows(session, task, rows, prompt, parameters):
            outcome = examine(task, asked, seen, known)
            if isinstance(outcome, Example):
                seen.add(normalise(task.render_query(outcome.fields)))
                kept.append(_example_line(task, asked, outcome) | made)
                bar.update()
            else:
                refused.append(_refused_line(asked.row, outcome, asked.reply))
            if len(kept) == parameters.max_examples or _is_out_of_order(refused):
                break
    not_needed = rows[len(kept) + len(refused) :]
    by_reason = Counter(line["reason"] for line in refused)
    if not kept:
        raise RebaseError(_explain_nothing(task, teacher, by_reason, refused))
    if len(kept) < parameters.max_examples:
        logger.warning("transform: %d examples passed, %d were wanted", len(kept), parameters.max_examples)
    refused += [_refused_line(row, Refusal("not_needed"), None) for row in not_needed]
    if not_needed:
        by_reason["not_needed"] = len(not_needed)
    examples = pd.DataFrame(kept, columns=EXAMPLE_COLUMNS)
    summary = {
        "stage": "transform",
        "in": len(rows),
        "kept": len(kept),
        "refused": dict(by_reason.most_common()),
        **made,
    }
    if task.answer.labels:
        summary["labels"] = {label: int((examples["answer"] == label).sum()) for label in task.answer.labels}
    return examples, pd.DataFrame(refused, columns=REFUSED_COLUMNS), summary


def ask_rows(
    session: Session, task: Task, rows: list[dict[str, Any]], prompt: TransformPrompt, parameters: TransformParameters
) -> Iterator[Asked]:
    """Ask about the rows, in their order; a row that offers a led teacher nothing comes without a reply."""
    led = parameters.led and can_be_led(task)
    columns = own_text_columns(rows) if led else {}
    waiting: deque[tuple[dict[str, Any], Led | None, bool]] = deque()

    def requests() -> Iterator[Request]:
        for row in rows:
            lead = find_lead(task, row, columns) if led else None
            is_asked = lead is not None or not led
            waiting.append((row, lead, is_asked))
            if is_asked:
                yield transform_request(task, row, prompt, parameters, lead)

    for reply in session.ask(requests()):
        while not waiting[0][2]:
            yield Asked(waiting.popleft()[0], None, None)
        row, lead, _ = waiting.popleft()
        yield Asked(row, lead, reply)
    for row, _, _ in waiting:
        yield Asked(row, None, None)


def examine(task: Task, asked: Asked, seen: set[str], known: Known) -> Example | Refusal:
    """The example that a row's reply gives, or why it gives none. ``seen``: the normalised queries kept so far."""
    reply = asked.reply
    if reply is None:
        return Refusal("nothing_to_ask_about")
    if isinstance(reply, Failure):
        return Refusal("teacher_failed", reply.reason)
    if reply.finish != "stop":
        return Refusal("reply_cut_off" if reply.finish == "length" else "teacher_refused")
    try:
        example = read_example(task, reply.text, asked.row["passage"], asked.lead)
    except ValueError as error:
        return Refusal("not_as_asked", str(error))
    if example is None:
        return Refusal("unfit_row")
    answer = tidy_answer(task, example.fields, example.answer)
    reason = refuse_example(task, example.fields, answer, seen, known)
    if (
        not reason
        and task.answer.labels
        and asked.lead
        and not names_label(answer, map(str, json.loads(asked.row["row"]).values()))
    ):
        # A weak teacher guesses where the row does not tell.
        reason = "label_not_in_row"
    return Refusal(reason, answer) if reason else Example(example.fields, answer)


def _example_line(task: Task, asked: Asked, example: Example) -> dict[str, Any]:
    """A line of ``examples``, without what all of them share."""
    reply = asked.reply
    spent = {name: getattr(reply, name) for name in ("input_tokens", "output_tokens")}
    return {
        "example_id": asked.row["row_id"],
        **{name: asked.row[name] for name in _PROVENANCE},
        "fields": json.dumps(example.fields, ensure_ascii=False),
        "query": task.render_query(example.fields),
        "answer": example.answer,
        "reply_key": reply.key if reply else None,
        **spent,
    }


def _refused_line(row: dict[str, Any], refusal: Refusal, reply: Reply | Failure | None) -> dict[str, Any]:
    return {
        **{name: row[name] for name in ("row_id", "dataset", "rank")},
        "reason": refusal.reason,
        "detail": refusal.detail,
        "reply_key": reply.key if reply else None,
        "text": reply.text if isinstance(reply, Reply) else None,
    }


def _is_out_of_order(refused: list[dict[str, Any]]) -> bool:
    """If the teacher has failed on the first requests, every one."""
    failed = sum(line["reason"] == "teacher_failed" for line in refused)
    return failed == _FAILURES_TO_STOP and not any(line["text"] for line in refused)


def _explain_nothing(task: Task, teacher: Teacher, by_reason: Counter[str], refused: list[dict[str, Any]]) -> str:
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
