"""Chain of thought: request the rationale for each answer, and keep those that agree (docs/method.md section 6)."""

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.generation.filters import Rejection
from rebase.generation.generate import (
    explain_silence,
    generate_all,
    rejected_line,
    require_examples,
)
from rebase.generation.prompts.parsing import read_rationale
from rebase.generation.prompts.requests import cot_request
from rebase.generation.prompts.templates import CotPrompt
from rebase.generation.self_consistency import AnswerSample, Majority, sample_answers, vote
from rebase.generation.verification import same_answer
from rebase.parameters import CotParameters
from rebase.records import REJECTED_COLUMNS, Task, summarize_stage
from rebase.teacher.budget import Usage
from rebase.teacher.cached import CachedSession, CachedTeacher

_Outcome = tuple[list[AnswerSample], Majority | Rejection]


def reason_examples(
    task: Task,
    examples: pd.DataFrame,
    retrieved: pd.DataFrame,
    teacher: CachedTeacher,
    cot_prompt: CotPrompt,
    parameters: CotParameters,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Add to each example the rationale that leads to its answer; for a task without ``cot`` pass all examples on.

    More than half of ``samples`` responses must reach one answer, by rationales without a wrong equation. If it is not
    the example's answer, the example is rejected or takes the answer of the majority (``on_disagreement``).

    Returns:
        The examples with ``rationale`` and ``agreement`` (the share of samples behind the answer); the rejected
        examples, with reasons; the summary.

    Raises:
        RebaseError: There are no examples before or after, or the teacher answers no request.

    """
    started = time.monotonic()
    require_examples("cot", examples)
    if not task.cot:
        passed = examples.assign(rationale=None, agreement=None).astype({"rationale": "str", "agreement": "float64"})
        return passed, pd.DataFrame(columns=REJECTED_COLUMNS), _summarize(len(passed), {}, started, 0, Usage())
    rows = {row["row_id"]: row for row in retrieved.to_dict("records")}
    lines = examples.to_dict("records")

    async def generate(session: CachedSession, line: dict[str, Any]) -> _Outcome:
        row = rows.get(line["row_id"])
        requests = [cot_request(task, line, row, cot_prompt, parameters, k) for k in range(parameters.samples)]
        samples = await sample_answers(session, requests, task, json.loads(line["fields"]), read_rationale)
        return samples, _compare(vote(samples), line["answer"], parameters)

    outcomes, usage = generate_all(
        teacher, lines, generate, lambda result: isinstance(result[1], Majority), stage="cot", total=len(lines),
        concurrency=lambda *_: max(1, teacher.concurrency // parameters.samples),
    )  # fmt: skip
    kept: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    relabeled = 0
    for line, (samples, outcome) in zip(lines, outcomes, strict=True):
        if isinstance(outcome, Rejection):
            rejected.append(rejected_line(line, outcome, samples[0].response))
        else:
            relabeled += not same_answer(outcome.answer, line["answer"])
            kept.append(line | {name: getattr(outcome, name) for name in ("answer", "rationale", "agreement")})
    reasons = Counter(line["reason"] for line in rejected)
    if not kept:
        name = f"{teacher.provider}/{teacher.model}"
        raise RebaseError(
            explain_silence("cot", name, rejected)
            or f"cot: the teacher {name} found no rationale that leads to an answer of task {task.name!r}: "
            f"{dict(reasons.most_common())}. Use a stronger teacher, set `cot.on_disagreement: relabel`, or set "
            "`cot: false` in the task to train on the answers alone."
        )
    summary = _summarize(len(kept), reasons, started, relabeled, usage)
    return pd.DataFrame(kept), pd.DataFrame(rejected, columns=REJECTED_COLUMNS), summary


def _summarize(kept: int, rejected: Mapping[str, int], started: float, relabeled: int, usage: Usage) -> dict[str, Any]:
    seconds = time.monotonic() - started
    return summarize_stage(
        "cot", kept=kept, rejected=rejected, seconds=seconds, relabeled=relabeled, usage=usage.summary()
    )


def _compare(outcome: Majority | Rejection, answer: str, parameters: CotParameters) -> Majority | Rejection:
    """The majority if it reaches ``answer``, or if it may replace it."""
    if isinstance(outcome, Rejection):
        return outcome
    if same_answer(outcome.answer, answer):
        return replace(outcome, answer=answer)
    if parameters.on_disagreement == "reject":
        return Rejection("another_answer", f"{outcome.answer} for {answer}")
    return outcome
