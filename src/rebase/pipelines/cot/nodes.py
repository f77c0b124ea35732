"""Chain of thought: ask the teacher how each answer comes about, and keep what agrees (docs/method.md section 6)."""

import asyncio
import json
import logging
from collections import Counter
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pandas as pd
from tqdm import tqdm

from rebase.errors import RebaseError
from rebase.generation.generate import REJECTED_COLUMNS, explain_silence
from rebase.generation.prompts.parsing import read_rationale
from rebase.generation.prompts.requests import cot_request
from rebase.generation.prompts.templates import CotPrompt
from rebase.generation.self_consistency import Sample, Verdict, read_sample, vote
from rebase.generation.verification import same_answer
from rebase.parameters import CotParameters
from rebase.records import Task
from rebase.teacher.budget import Usage, progress
from rebase.teacher.cached import CachedTeacher
from rebase.teacher.concurrency import in_order, run
from rebase.teacher.protocol import Failure, Response

logger = logging.getLogger(__name__)


def reason_examples(
    task: Task,
    examples: pd.DataFrame,
    retrieved: pd.DataFrame,
    teacher: CachedTeacher,
    cot_prompt: CotPrompt,
    parameters: CotParameters,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Give each example the reasoning that leads to its answer; for a task without ``cot`` pass all on as they are.

    Of ``samples`` responses an example needs more than half to reach one answer, by reasoning without a wrong sum. Where
    that is another answer than the example's, it is rejected, or takes the majority's (``on_disagreement``).

    Returns:
        The examples with ``rationale`` and ``agreement`` (the share of samples behind the answer); the examples
        that were rejected, with reasons; the stage's summary.

    Raises:
        RebaseError: No example was left, or the teacher answers nothing.

    """
    if not task.cot:
        passed = examples.assign(rationale=None, agreement=None).astype({"rationale": "str", "agreement": "float64"})
        return passed, pd.DataFrame(columns=REJECTED_COLUMNS), _summary(passed, {}, 0, Usage())
    sources = {row["row_id"]: row for row in retrieved.to_dict("records")}
    lines = examples.to_dict("records")

    kept: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    verdicts, usage = run(_ask_examples(task, lines, sources, teacher, cot_prompt, parameters))
    for line, (samples, verdict) in zip(lines, verdicts, strict=True):
        if verdict.rejected:
            rejected.append(_rejection(line, verdict, samples))
        else:
            found = {"answer": verdict.answer, "rationale": verdict.rationale, "agreement": verdict.agreement}
            kept.append({**line, **found, "relabeled": not same_answer(verdict.answer, line["answer"])})
    by_reason = dict(Counter(line["reason"] for line in rejected).most_common())
    if not kept:
        raise RebaseError(_explain_nothing(task, teacher, by_reason, rejected))
    reasoned = pd.DataFrame(kept)
    relabeled = int(reasoned.pop("relabeled").sum())
    return reasoned, pd.DataFrame(rejected, columns=REJECTED_COLUMNS), _summary(reasoned, by_reason, relabeled, usage)


def judge(samples: list[Sample], answer: str, parameters: CotParameters) -> Verdict:
    """What the samples say of ``answer``: the majority must reach it, or its own answer takes over if that may be."""
    verdict = vote(samples)
    if verdict.rejected:
        return verdict
    if same_answer(verdict.answer, answer):
        return replace(verdict, answer=answer)
    if parameters.on_disagreement == "reject":
        return Verdict(rejected="another_answer", detail=f"{verdict.answer} for {answer}")
    return verdict


async def _ask_examples(
    task: Task,
    lines: list[dict[str, Any]],
    sources: dict[str, dict[str, Any]],
    teacher: CachedTeacher,
    prompt: CotPrompt,
    parameters: CotParameters,
) -> tuple[list[tuple[list[Sample], Verdict]], Usage]:
    """For each example the samples of its reasoning and what they come to; and what was asked."""
    room = max(1, teacher.concurrency // parameters.samples)
    async with teacher.open() as session:

        async def ask(line: dict[str, Any]) -> tuple[list[Sample], Verdict]:
            source = sources.get(line["row_id"])
            requests = [cot_request(task, line, source, prompt, parameters, k) for k in range(parameters.samples)]
            responses = await asyncio.gather(*map(session.generate, requests))
            fields = json.loads(line["fields"])
            samples = [read_sample(task, fields, response, read_rationale) for response in responses]
            return samples, judge(samples, line["answer"], parameters)

        found: list[tuple[list[Sample], Verdict]] = []
        rejected = 0
        with tqdm(total=len(lines), desc="cot", unit="example") as bar:
            async with aclosing(in_order(ask, lines, lambda: room)) as answers:
                async for answer in answers:
                    found.append(answer)
                    rejected += answer[1].rejected is not None
                    bar.set_postfix_str(
                        progress(len(found) - rejected, rejected, len(lines) / len(found), session.usage)
                    )
                    bar.update()
    return found, session.usage


def _summary(reasoned: pd.DataFrame, by_reason: dict[str, int], relabeled: int, usage: Usage) -> dict[str, Any]:
    return {
        "stage": "cot",
        "in": len(reasoned) + sum(by_reason.values()),
        "kept": len(reasoned),
        "rejected": by_reason,
        "relabeled": relabeled,
        "usage": usage.summary(),
    }


def _rejection(line: dict[str, Any], verdict: Verdict, samples: list[Sample]) -> dict[str, Any]:
    """The rejected example with the first of its responses."""
    first = samples[0].response
    return {
        **{name: line[name] for name in ("row_id", "dataset", "rank")},
        "reason": verdict.rejected,
        "detail": verdict.detail or (first.reason if isinstance(first, Failure) else ""),
        "response_key": first.key,
        "text": first.text if isinstance(first, Response) else None,
    }


def _explain_nothing(
    task: Task, teacher: CachedTeacher, by_reason: dict[str, int], rejected: list[dict[str, Any]]
) -> str:
    name = f"{teacher.provider}/{teacher.model}"
    return explain_silence("cot", name, rejected) or (
        f"cot: the teacher {name} found no reasoning that leads to an answer of task {task.name!r}: {by_reason}. "
        "Take a stronger teacher, set `cot.on_disagreement: relabel`, or set `cot: false` in the task to train on the "
        "answers alone."
    )
