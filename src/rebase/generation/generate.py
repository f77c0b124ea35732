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
from rebase.generation.prompts.parsing import Example, read_check
from rebase.generation.prompts.requests import check_request
from rebase.generation.prompts.templates import CheckPrompt, Prompt, prompt_hash
from rebase.generation.verification import Known, agrees, label_balance, one_sided, reject_example, tidy_answer
from rebase.parameters import SamplingParameters
from rebase.records import Task
from rebase.teacher.budget import Usage, progress
from rebase.teacher.cached import CachedSession, CachedTeacher
from rebase.teacher.concurrency import in_order
from rebase.teacher.protocol import Failure, Response, why_unreadable
from rebase.text import normalize

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PROVENANCE = [
    "row_id", "dataset", "config", "revision", "row_index", "license", "rank", "score", "score_dataset", "score_query",
    "score_answer", "query_column", "answer_column",
]  # fmt: skip
#: Columns of ``examples``: one line an example, with where it came from. What was synthesized came from no row.
EXAMPLE_COLUMNS = [
    "example_id", *_PROVENANCE, "fields", "query", "answer", "cut", "teacher", "prompt_hash", "response_key",
    "input_tokens", "output_tokens", "dollars",
]  # fmt: skip
REJECTED_COLUMNS = ["row_id", "dataset", "rank", "reason", "detail", "response_key", "text"]


@dataclass(frozen=True)
class Rejection:
    """Why an item becomes no example."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Asked:
    """An item, the teacher's response (None where it was not asked), and what came of it.

    ``item`` is a row of ``retrieved``, an input with its provenance, or has a ``row_id`` alone. ``cut`` names the row's
    columns that the teacher was not shown whole. ``more`` is what the example's line has besides ``EXAMPLE_COLUMNS``.
    """

    item: dict[str, Any]
    response: Response | Failure | None
    outcome: Example | Rejection
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
    """The lines of ``examples``, without what all share, and the lines of what was rejected, in the items' order.

    Ends when ``wanted`` examples have passed, when the items end, or when ``room(kept, rejected)``, which says how many
    items may be asked about at once, is 0. An example whose query another one has is rejected as ``duplicate``.
    """
    seen: set[str] = set()
    kept: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    with tqdm(total=wanted, desc=stage, unit="example") as bar:
        async with aclosing(in_order(ask, items, lambda: room(len(kept), len(rejected)))) as answers:
            async for asked in answers:
                outcome = asked.outcome
                if isinstance(outcome, Example) and (query := normalize(task.render_query(outcome.fields))) in seen:
                    outcome = Rejection("duplicate", outcome.answer)
                if isinstance(outcome, Example):
                    seen.add(query)
                    kept.append(_example_line(task, asked, outcome))
                    bar.update()
                else:
                    rejected.append(rejected_line(asked.item, outcome, asked.response))
                bar.set_postfix_str(progress(len(kept), len(rejected), wanted / max(1, len(kept)), usage))
                if len(kept) == wanted:
                    break
    return kept, rejected


def conclude(
    stage: str,
    task: Task,
    teacher: CachedTeacher,
    prompt: Prompt,
    found: tuple[list[dict[str, Any]], list[dict[str, Any]], Usage],
    advice: str,
    columns: list[str] = EXAMPLE_COLUMNS,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Tables of what was kept and what was rejected, and the stage's summary; ``found`` are their lines, and usage.

    Raises RebaseError where nothing was kept; it ends with ``advice`` if the teacher did answer.
    """
    kept, rejected, usage = found
    name = f"{teacher.provider}/{teacher.model}"
    by_reason = dict(Counter(line["reason"] for line in rejected).most_common())
    if not kept:
        raise RebaseError(
            explain_silence(stage, name, rejected)
            or f"{stage}: the teacher {name} wrote nothing usable for task {task.name!r}: {by_reason}. {advice}"
        )
    made = {"teacher": name, "prompt_hash": prompt_hash(prompt, task)}
    examples = pd.DataFrame([line | made for line in kept], columns=columns)
    summary = {
        "stage": stage,
        "in": len(kept) + len(rejected),
        "kept": len(kept),
        "rejected": by_reason,
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
    return examples, pd.DataFrame(rejected, columns=REJECTED_COLUMNS), summary


def read_response(response: Response | Failure, read: Callable[[str], T]) -> T | Rejection:
    """What ``read`` makes of a response's text, or why there is nothing to be had: ``read`` may raise ValueError."""
    if isinstance(response, Failure) or response.finish != "stop":
        return Rejection(why_unreadable(response), response.reason if isinstance(response, Failure) else "")
    try:
        return read(response.text)
    except ValueError as error:
        return Rejection("not_as_asked", str(error))


def examine(task: Task, example: Example, known: Known) -> Example | Rejection:
    """The example with its answer tidied, or why it is rejected."""
    answer = tidy_answer(task, example.fields, example.answer)
    reason = reject_example(task, example.fields, answer, known)
    return Rejection(reason, answer) if reason else Example(example.fields, answer)


async def apply_consistency_filter(
    session: CachedSession, task: Task, asked: Asked, prompt: CheckPrompt, sampling: SamplingParameters
) -> Asked:
    """Have the teacher answer the new query without the answer: where it does not agree with itself, reject.

    What was rejected before stays as it is.
    """
    example = asked.outcome
    if isinstance(example, Rejection):
        return asked
    response = await session.generate(check_request(task, example.fields, prompt, sampling))
    answer = read_response(response, lambda text: read_check(task, example.fields, text))
    if isinstance(answer, Rejection):
        return replace(asked, outcome=answer)
    if agrees(task, example.fields, example.answer, answer):
        return asked
    return replace(asked, outcome=Rejection("inconsistent", f"{answer} for {example.answer}"))


def rejected_line(
    item: dict[str, Any], rejection: Rejection, response: Response | Failure | None = None
) -> dict[str, Any]:
    """A line of what was rejected."""
    return {
        **{name: item.get(name) for name in ("row_id", "dataset", "rank")},
        "reason": rejection.reason,
        "detail": rejection.detail,
        "response_key": response.key if response else None,
        "text": response.text if isinstance(response, Response) else None,
    }


def explain_silence(stage: str, teacher: str, rejected: list[dict[str, Any]]) -> str | None:
    """What to tell a user whose teacher answered not one request; None where it answered some."""
    if any(line["text"] for line in rejected):
        return None
    failed = [line["detail"] for line in rejected if line["reason"] == "teacher_failed"]
    unsent = [line["detail"] for line in rejected if line["reason"] == "budget_reached"]
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
        "response_key": asked.response.key if asked.response else None,
        **{name: getattr(asked.response, name) for name in ("input_tokens", "output_tokens", "dollars")},
        **asked.more,
    }
