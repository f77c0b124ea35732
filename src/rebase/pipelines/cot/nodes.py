"""Chain of thought: request the rationale for each answer, and keep those that agree (docs/method.md section 6)."""

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from rebase.errors import StageError
from rebase.generation.filters.base import Rejection
from rebase.generation.generate import explain_nothing_kept, generate_all, rejected_line, require_examples
from rebase.generation.prompts.parsing import read_rationale
from rebase.generation.prompts.requests import cot_request
from rebase.generation.prompts.templates import SolvePrompt
from rebase.generation.self_consistency import AnswerSample, sample_answers, vote
from rebase.generation.verification import reject_answer, same_answer
from rebase.parameters import CotParameters
from rebase.records import PEOPLE, REJECTED_COLUMNS, Task, summarize_stage
from rebase.student.formatting import Target
from rebase.teacher.budget import Usage
from rebase.teacher.cached import CachedSession, CachedTeacher

_Outcome = tuple[list[AnswerSample], AnswerSample | Rejection]


def reason_examples(
    task: Task,
    examples: pd.DataFrame,
    retrieved: pd.DataFrame,
    teacher: CachedTeacher,
    cot_prompt: SolvePrompt,
    target: Target,
    parameters: CotParameters,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Add to each example the rationale that leads to its answer.

    For a task without ``cot`` pass all examples on. If the student learns the answer alone (``target``), pass those on
    whose answers are people's: the teacher's disagreement is no reason to reject them.

    More than half of ``samples`` responses must reach one answer, by rationales without a wrong equation. If it is not
    the example's answer, the example is rejected or takes the answer of the majority (``on_disagreement``), which must
    pass the checks that all answers pass.

    Returns the examples with ``rationale`` and ``agreement`` (the share of samples behind the answer), and this teacher
    as the ``teacher`` of a changed answer; the rejected examples, with reasons; the summary. Raises RebaseError if
    there are no examples before or after, or the teacher answers no request.
    """
    started = time.monotonic()
    require_examples("cot", examples)
    is_passed = pd.Series(not task.cot, examples.index)
    if "mapping_id" in examples and target == "answer":
        is_passed |= examples["mapping_id"].notna() & (examples["teacher"] == PEOPLE)
    if is_passed.all():
        passed = examples.assign(rationale=None, agreement=None).astype({"rationale": "str", "agreement": "float64"})
        summary = summarize_stage("cot", kept=len(passed), rejected={}, seconds=0, relabeled=0, usage=Usage().summary())
        return passed, pd.DataFrame(columns=REJECTED_COLUMNS), summary
    rows = {row["row_id"]: row for row in retrieved.to_dict("records")}
    lines = examples[~is_passed].to_dict("records")

    async def generate(session: CachedSession, line: dict[str, Any]) -> _Outcome:
        row, fields = rows.get(line["row_id"]), json.loads(line["fields"])
        requests = [cot_request(task, fields, row, cot_prompt, parameters, k) for k in range(parameters.samples)]
        samples = await sample_answers(session, requests, task, fields, read_rationale)
        return samples, _compare(task, fields, vote(samples), line["answer"], parameters)

    outcomes, usage = generate_all(
        teacher, lines, generate, lambda result: isinstance(result[1], AnswerSample), stage="cot",
        concurrency=lambda *_: max(1, teacher.concurrency // parameters.samples),
    )  # fmt: skip
    kept = [line | {"rationale": None, "agreement": None} for line in examples[is_passed].to_dict("records")]
    rejected: list[dict[str, Any]] = []
    relabeled = 0
    for line, (samples, outcome) in zip(lines, outcomes, strict=True):
        if isinstance(outcome, Rejection):
            rejected.append(rejected_line(line, outcome, samples[0].response))
        else:
            kept.append(line | {name: getattr(outcome, name) for name in ("answer", "rationale", "agreement")})
            if outcome.answer != line["answer"]:
                relabeled += 1
                kept[-1]["teacher"] = f"{teacher.provider}/{teacher.model}"
    rejected_table = pd.DataFrame(rejected, columns=REJECTED_COLUMNS)
    if not kept:
        advice = (
            "Use a stronger teacher, set `cot.on_disagreement: relabel`, or set `cot: false` in the task to train on "
            "the answers alone."
        )
        raise StageError(explain_nothing_kept("cot", task, teacher, rejected, advice), rejected_table)
    summary = summarize_stage(
        "cot", kept=len(kept), rejected=Counter(line["reason"] for line in rejected),
        seconds=time.monotonic() - started, relabeled=relabeled, usage=usage.summary(),
    )  # fmt: skip
    return pd.DataFrame(kept), rejected_table, summary


def _compare(
    task: Task,
    fields: Mapping[str, str],
    outcome: AnswerSample | Rejection,
    answer: str,
    parameters: CotParameters,
) -> AnswerSample | Rejection:
    """The majority if it reaches ``answer``, or if it may replace it."""
    if isinstance(outcome, Rejection):
        return outcome
    if same_answer(outcome.answer, answer):
        return replace(outcome, answer=answer)
    if parameters.on_disagreement == "reject":
        return Rejection("another_answer", f"{outcome.answer} for {answer}")
    reason = reject_answer(task, fields, outcome.answer)
    return Rejection(reason, outcome.answer) if reason else outcome
