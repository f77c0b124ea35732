"""Collecting examples: ask the teacher about one item after another and keep what stands every check.

Shared by ``transform``, whose items are retrieved rows, ``synthesize``, whose items are but numbers, and ``distil``,
whose items are inputs without answers.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pandas as pd
from tqdm import tqdm

from rebase.errors import RebaseError
from rebase.parameters import SamplingParameters
from rebase.prompts import CheckPrompt, Example, Prompt, check_request, prompt_hash, read_check
from rebase.records import Task
from rebase.teacher.budget import Usage, progress
from rebase.teacher.flow import in_order
from rebase.teacher.protocol import Failure, Reply, why_unreadable
from rebase.teacher.stored import StoredSession, StoredTeacher
from rebase.text import normalise
from rebase.verification import Known, agrees, label_balance, one_sided, refuse_example, tidy_answer

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PROVENANCE = [
    "row_id", "dataset", "config", "revision", "row_index", "licence", "rank", "score", "score_dataset", "score_query",
    "score_answer", "query_column", "answer_column",
]  # fmt: skip
#: Columns of ``examples``: one line an example, with where it came from. What was synthesised came from no row.
EXAMPLE_COLUMNS = [
    "example_id", *_PROVENANCE, "fields", "query", "answer", "cut", "teacher", "prompt_hash", "reply_key",
    "input_tokens", "output_tokens", "dollars",
]  # fmt: skip
REFUSED_COLUMNS = ["row_id", "dataset", "rank", "reason", "detail", "reply_key", "text"]


@dataclass(frozen=True)
class Refusal:
    """Why an item becomes no example."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Asked:
    """An item, the teacher's reply (None where it was not asked), and what came of it.

    ``item`` is a row of ``retrieved``, an input with its provenance, or has a ``row_id`` alone. ``cut`` names the row's
    columns that the teacher was not shown whole. ``more`` is what the example's line has besides ``EXAMPLE_COLUMNS``.
    """

    item: dict[str, Any]
    reply: Reply | Failure | None
    outcome: Example | Refusal
    cut: tuple[str, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)


async def collect(
    task: Task,
    items: Iterable[T],
    ask: Callable[[T], Coroutine[Any, Any, Asked]],
    room: Callable[[int, int], int],
    wanted: int,
    usage: Usage,
    stage: str,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of ``examples``, without what all share, and the lines of what was refused, in the items' order.

    Ends when ``wanted`` examples have passed, when the items end, or when ``room(kept, refused)``, which says how many
    items may be asked about at once, is 0. An example whose query another one has is refused as ``duplicate``.
    """
    seen: set[str] = set()
    kept: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    with tqdm(total=wanted, desc=stage, unit="example") as bar:
        async with aclosing(in_order(ask, items, lambda: room(len(kept), len(refused)))) as answers:
            async for asked in answers:
                outcome = asked.outcome
                if isinstance(outcome, Example) and (query := normalise(task.render_query(outcome.fields))) in seen:
                    outcome = Refusal("duplicate", outcome.answer)
                if isinstance(outcome, Example):
                    seen.add(query)
                    kept.append(_example_line(task, asked, outcome))
                    bar.update()
                else:
                    refused.append(refused_line(asked.item, outcome, asked.reply))
                bar.set_postfix_str(progress(len(kept), len(refused), wanted / max(1, len(kept)), usage))
                if len(kept) == wanted:
                    break
    return kept, refused


def conclude(
    stage: str,
    task: Task,
    teacher: StoredTeacher,
    prompt: Prompt,
    found: tuple[list[dict[str, Any]], list[dict[str, Any]], Usage],
    advice: str,
    columns: list[str] = EXAMPLE_COLUMNS,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Tables of what was kept and what was refused, and the stage's summary; ``found`` are their lines, and usage.

    Raises RebaseError where nothing was kept; it ends with ``advice`` if the teacher did answer.
    """
    kept, refused, usage = found
    name = f"{teacher.provider}/{teacher.model}"
    by_reason = dict(Counter(line["reason"] for line in refused).most_common())
    if not kept:
        raise RebaseError(
            explain_silence(stage, name, refused)
            or f"{stage}: the teacher {name} wrote nothing usable for task {task.name!r}: {by_reason}. {advice}"
        )
    made = {"teacher": name, "prompt_hash": prompt_hash(prompt, task)}
    examples = pd.DataFrame([line | made for line in kept], columns=columns)
    summary = {
        "stage": stage,
        "in": len(kept) + len(refused),
        "kept": len(kept),
        "refused": by_reason,
        **made,
        "dtype": teacher.compute_dtype,
        "usage": usage.summary(),
    }
    if task.answer.labels:
        summary["labels"] = balance = label_balance(task.answer.labels, examples["answer"])
        if balance["missing"]:
            logger.warning("%s: no example has the label %s", stage, ", ".join(balance["missing"]))
        if doubt := one_sided(balance["counts"]):
            logger.warning("%s: %s", stage, doubt)
    return examples, pd.DataFrame(refused, columns=REFUSED_COLUMNS), summary


def read_reply(reply: Reply | Failure, read: Callable[[str], T]) -> T | Refusal:
    """What ``read`` makes of a reply's text, or why there is nothing to be had: ``read`` may raise ValueError."""
    if isinstance(reply, Failure) or reply.finish != "stop":
        return Refusal(why_unreadable(reply), reply.reason if isinstance(reply, Failure) else "")
    try:
        return read(reply.text)
    except ValueError as error:
        return Refusal("not_as_asked", str(error))


def examine(task: Task, example: Example, known: Known) -> Example | Refusal:
    """The example with its answer tidied, or why it is refused."""
    answer = tidy_answer(task, example.fields, example.answer)
    reason = refuse_example(task, example.fields, answer, known)
    return Refusal(reason, answer) if reason else Example(example.fields, answer)


async def check_round_trip(
    session: StoredSession, task: Task, asked: Asked, prompt: CheckPrompt, sampling: SamplingParameters
) -> Asked:
    """Have the teacher answer the new query without the answer: where it does not agree with itself, refuse.

    What was refused before stays as it is.
    """
    example = asked.outcome
    if isinstance(example, Refusal):
        return asked
    reply = await session.ask(check_request(task, example.fields, prompt, sampling))
    answer = read_reply(reply, lambda text: read_check(task, example.fields, text))
    if isinstance(answer, Refusal):
        return replace(asked, outcome=answer)
    if agrees(task, example.fields, example.answer, answer):
        return asked
    return replace(asked, outcome=Refusal("round_trip_disagrees", f"{answer} for {example.answer}"))


def refused_line(item: dict[str, Any], refusal: Refusal, reply: Reply | Failure | None = None) -> dict[str, Any]:
    """A line of what was refused."""
    return {
        **{name: item.get(name) for name in ("row_id", "dataset", "rank")},
        "reason": refusal.reason,
        "detail": refusal.detail,
        "reply_key": reply.key if reply else None,
        "text": reply.text if isinstance(reply, Reply) else None,
    }


def explain_silence(stage: str, teacher: str, refused: list[dict[str, Any]]) -> str | None:
    """What to tell a user whose teacher answered not one request; None where it answered some."""
    if any(line["text"] for line in refused):
        return None
    failed = [line["detail"] for line in refused if line["reason"] == "teacher_failed"]
    unsent = [line["detail"] for line in refused if line["reason"] == "budget_reached"]
    if unsent and not failed:
        return (
            f"{stage}: there was nothing left to ask the teacher {teacher} with: {unsent[0]}. "
            "Raise that bound in globals.yml and run again: nothing is paid twice."
        )
    if not failed:
        return None
    return (
        f"{stage}: the teacher {teacher} answered none of {len(failed)} requests. It says: "
        f"{max(failed, key=failed.count)}\n"
        "Look at `teacher` in globals.yml and at the credentials, then run again: nothing is paid twice."
    )


def _example_line(task: Task, asked: Asked, example: Example) -> dict[str, Any]:
    """A line of ``examples``, without what all of them share."""
    return {
        "example_id": asked.item["row_id"],
        **{name: asked.item.get(name) for name in _PROVENANCE},
        "fields": json.dumps(example.fields, ensure_ascii=False),
        "query": task.render_query(example.fields),
        "answer": example.answer,
        "cut": json.dumps(asked.cut, ensure_ascii=False),
        "reply_key": asked.reply.key if asked.reply else None,
        **{name: getattr(asked.reply, name) for name in ("input_tokens", "output_tokens", "dollars")},
        **asked.more,
    }
