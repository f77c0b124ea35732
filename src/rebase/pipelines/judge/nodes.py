"""Judge: grades by a rubric, comparisons in both orders, and a blind sheet for people (docs/method.md section 8)."""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import pandas as pd
from tqdm import tqdm

from rebase.datastore.sampling import systematic_positions
from rebase.errors import RebaseError
from rebase.generation.prompts import prompt_hash
from rebase.judging.human_grading import make_key, write_form, write_sheet
from rebase.judging.llm_judge import (
    PAIR_FILE,
    RUBRIC_FILE,
    PairPrompt,
    RubricPrompt,
    calibrate,
    compare_with_gold,
    find_doubts,
    find_pairs,
    mean_grade,
    mean_grades,
    pair_request,
    read_grades,
    read_verdict,
    rubric_request,
    summarize_pairs,
)
from rebase.parameters import JudgeParameters
from rebase.records import Task
from rebase.teacher.budget import Usage, progress
from rebase.teacher.cached import CachedTeacher
from rebase.teacher.concurrency import in_order, run
from rebase.teacher.protocol import Failure, Request, Response, why_unreadable

logger = logging.getLogger(__name__)

_ASKED = ["kind", "item_id", "system", "first", "second"]
_SPENT = ["input_tokens", "output_tokens", "dollars"]
REJECTED_COLUMNS = [*_ASKED, "reason", "detail", "response_key", "text"]

#: Two answers that are the same need no comparison: it is a tie.
SAME_ANSWERS = "same_answers"


@dataclass(frozen=True)
class Question:
    """One question to the judge: about the answer of ``system``, or about those of ``first`` and ``second``."""

    item_id: str
    system: str | None = None
    first: str | None = None
    second: str | None = None

    @property
    def line(self) -> dict[str, Any]:
        """What the tables say of it."""
        return {"kind": "rubric" if self.system is not None else "pair", **vars(self)}


@dataclass(frozen=True)
class Asked:
    """A question, its response, and what the response says; or why it counts for nothing."""

    question: Question
    response: Response | Failure | None = None
    said: dict[str, Any] | None = None
    reason: str = ""
    detail: str = ""


class Answers:
    """The systems' answers to the items, beside what the items ask; those of the first ``limit`` items by even stride.

    Raises RebaseError where an item is not in the evaluation set, or the pair is not among the systems.
    """

    def __init__(self, evaluation_items: pd.DataFrame, predictions: pd.DataFrame, parameters: JudgeParameters) -> None:
        self._raw = {(line["system"], line["item_id"]): line["raw"] for line in predictions.to_dict("records")}
        self._queries = dict(zip(evaluation_items["item_id"], evaluation_items["query"], strict=True))
        self.systems = [str(system) for system in predictions["system"].unique()]
        self.pair = parameters.pair
        items = [str(item) for item in predictions["item_id"].unique()]
        if unknown := [item for item in items if item not in self._queries]:
            raise RebaseError(
                f"judge: item {unknown[0]!r} was answered, but is not in the evaluation set ({len(unknown)} such "
                "items). Run the pipeline evaluate again, or judge with the evaluation set of then."
            )
        if absent := [system for system in self.pair or () if system not in self.systems]:
            raise RebaseError(
                f"judge.pair names {absent[0]!r}; there are answers of: {', '.join(self.systems)}. "
                "Name two of them, or set judge.pair to null."
            )
        if not items:
            raise RebaseError("judge: there are no answers. Run the pipeline evaluate first.")
        self.items = [items[place] for place in systematic_positions(len(items), parameters.limit or len(items))]
        self.over_limit = sorted(set(items) - set(self.items))

    def query(self, item: str) -> str:
        """What the item asks."""
        return self._queries[item]

    def of(self, system: str | None, item: str) -> str:
        """A system's answer, as it was written."""
        return str(self._raw[system, item])

    def questions(self, items: list[str]) -> Iterator[Question]:
        """What there is to ask about the items: of each answer, and of the pair in both orders."""
        for item in items:
            answered = [system for system in self.systems if (system, item) in self._raw]
            yield from (Question(item, system=system) for system in answered)
            if self.pair and {*self.pair} <= {*answered}:
                one, other = self.pair
                yield from (Question(item, first=one, second=other), Question(item, first=other, second=one))


def judge_answers(
    task: Task,
    evaluation_items: pd.DataFrame,
    predictions: pd.DataFrame,
    judge: CachedTeacher,
    judge_rubric: dict[str, Any],
    judge_pair: dict[str, Any],
    parameters: JudgeParameters,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Have each answer graded by each criterion of the rubric, and each pair of answers compared in both orders.

    The judge sees the raw answers, neither which systems they are of nor the gold answers.

    Returns:
        A line for each question that was answered: grades, or a verdict, with the judge's rationale; those that were
        not, with reasons; the stage's summary.

    Raises:
        RebaseError: The rubric is wrong, or the judge said nothing that can be read.

    """
    rubric, prompt = RubricPrompt.parse(judge_rubric, RUBRIC_FILE), PairPrompt.parse(judge_pair, PAIR_FILE)
    answers = Answers(evaluation_items, predictions, parameters)

    def request(question: Question) -> Request | None:
        query = answers.query(question.item_id)
        if question.system is not None:
            answer = answers.of(question.system, question.item_id)
            return rubric_request(task, rubric, query, answer, parameters.sampling)
        first, second = (answers.of(system, question.item_id) for system in (question.first, question.second))
        same = first.strip() == second.strip()
        return None if same else pair_request(task, prompt, query, first, second, parameters.sampling)

    asked, usage = run(_ask(judge, rubric, [(one, request(one)) for one in answers.questions(answers.items)]))
    asked += [Asked(question, reason="over_limit") for question in answers.questions(answers.over_limit)]
    rejected = [one for one in asked if one.said is None]
    by_reason = Counter(one.reason for one in rejected)
    if len(rejected) == len(asked):
        raise RebaseError(_explain_nothing(judge, by_reason, rejected))
    made = {"judge": f"{judge.provider}/{judge.model}"}
    hashes = {"rubric": prompt_hash(rubric, task), "pair": prompt_hash(prompt, task)}
    columns = [*_ASKED, *rubric.names, "verdict", "rationale", "response_key", "judge", "prompt_hash", *_SPENT]
    lines = [_line(one) | made | {"prompt_hash": hashes[one.question.line["kind"]]} for one in asked if one.said]
    judgments = pd.DataFrame(lines, columns=columns)
    # A table of pairs alone, or of grades alone, has the same types as any other.
    judgments = judgments.astype(dict.fromkeys(rubric.names, "float64"))
    summary = {
        "stage": "judge",
        "in": len(asked),
        "kept": len(judgments),
        "rejected": dict(by_reason.most_common()),
        **made,
        "kinds": judgments["kind"].value_counts().to_dict(),
        "usage": usage.summary(),
    }
    return judgments, pd.DataFrame([_rejection(one) for one in rejected], columns=REJECTED_COLUMNS), summary


def score_judgments(
    task: Task,
    predictions: pd.DataFrame,
    judgments: pd.DataFrame,
    judge_rejected: pd.DataFrame,
    judge_rubric: dict[str, Any],
    parameters: JudgeParameters,
) -> dict[str, Any]:
    """What the judgments come to, and how far they can be trusted.

    ``grades`` (1 .. 5) of each system with their intervals, and the paired ``differences``; the ``pairwise`` rates and
    position bias (percent); ``calibration`` of each criterion by each metric, for answers with gold, and what the
    comparisons say where a metric tells the two answers apart; ``doubts``, in words.
    """
    names = RubricPrompt.parse(judge_rubric, RUBRIC_FILE).names
    metrics = [metric for metric in task.metrics if metric in predictions]
    has_gold = predictions["answers"].map(lambda answers: bool(json.loads(answers)))
    gold = predictions[has_gold].dropna(subset=metrics).set_index(["system", "item_id"])[metrics]
    graded = judgments[judgments["kind"] == "rubric"].set_index(["system", "item_id"])
    both = graded.join(gold, how="inner")
    scores: dict[str, Any] = {
        "task": task.name,
        "judge": judgments["judge"].iloc[0],
        "confidence": parameters.confidence,
        "grades": mean_grades(graded.reset_index(), names, parameters),
        "calibration": {
            name: {metric: calibrate(both[name].to_list(), both[metric].to_list()) for metric in metrics}
            for name in names
        },
    }
    if parameters.pair:
        scores |= _compare(graded, gold, judgments, judge_rejected, names, parameters)
    scores["doubts"] = find_doubts(graded, names, scores)
    for doubt in scores["doubts"]:
        logger.warning("judge: do not trust %s: %s", scores["judge"], doubt)
    return scores


def _compare(
    graded: pd.DataFrame,
    gold: pd.DataFrame,
    judgments: pd.DataFrame,
    judge_rejected: pd.DataFrame,
    names: tuple[str, ...],
    parameters: JudgeParameters,
) -> dict[str, Any]:
    """The ``differences`` of the pair's grades, and what comes of their comparison."""
    assert parameters.pair is not None  # noqa: S101
    one, other = parameters.pair
    ours, theirs = (_of(graded, system)[list(names)] for system in parameters.pair)
    differences = (ours - theirs).dropna()
    pairs, in_one_order = find_pairs(judgments, one, other)
    same = int((judge_rejected["reason"] == SAME_ANSWERS).sum()) // 2
    better = (_of(gold, one) - _of(gold, other)).dropna()
    return {
        "differences": {f"{one} - {other}": {name: mean_grade(differences[name], parameters) for name in names}},
        "pairwise": {
            "systems": [one, other],
            "in_one_order": in_one_order,
            **summarize_pairs(pairs.values(), same, parameters),
            "gold": {metric: compare_with_gold(pairs, better[metric].to_dict()) for metric in better},
        },
    }


def _of(lines: pd.DataFrame, system: str) -> pd.DataFrame:
    """A system's lines of a table by system and item, by item."""
    return lines[lines.index.get_level_values(0) == system].droplevel(0)


def write_sheets(
    task: Task,
    evaluation_items: pd.DataFrame,
    predictions: pd.DataFrame,
    judge_rubric: dict[str, Any],
    parameters: JudgeParameters,
) -> tuple[pd.DataFrame, str, pd.DataFrame]:
    """Put ``sheet_items`` of the judged items on a blind sheet: as a table, as a page, and the key to both."""
    rubric = RubricPrompt.parse(judge_rubric, RUBRIC_FILE)
    answers = Answers(evaluation_items, predictions, parameters)
    items = [answers.items[place] for place in systematic_positions(len(answers.items), parameters.sheet_items)]
    given = [
        (
            question.item_id,
            question.system,
            answers.query(question.item_id),
            answers.of(question.system, question.item_id),
        )
        for question in answers.questions(items)
        if question.system is not None
    ]
    key = make_key(task, given, parameters.seed)
    return write_sheet(key, rubric), write_form(task, key, rubric), key


async def _ask(
    judge: CachedTeacher, rubric: RubricPrompt, questions: list[tuple[Question, Request | None]]
) -> tuple[list[Asked], Usage]:
    async with judge.open() as session:

        async def ask(given: tuple[Question, Request | None]) -> Asked:
            question, request = given
            if request is None:
                return Asked(question, reason=SAME_ANSWERS)
            return _read(rubric, question, await session.generate(request))

        found: list[Asked] = []
        rejected = 0
        with tqdm(total=len(questions), desc="judge", unit="question") as bar:
            async with aclosing(in_order(ask, questions, lambda: judge.concurrency)) as answers:
                async for answer in answers:
                    found.append(answer)
                    rejected += answer.said is None
                    share = len(questions) / len(found)
                    bar.set_postfix_str(progress(len(found) - rejected, rejected, share, session.usage))
                    bar.update()
    return found, session.usage


def _read(rubric: RubricPrompt, question: Question, response: Response | Failure) -> Asked:
    if isinstance(response, Failure) or response.finish != "stop":
        detail = response.reason if isinstance(response, Failure) else ""
        return Asked(question, response, reason=why_unreadable(response), detail=detail)
    try:
        if question.system is None:
            rationale, verdict = read_verdict(response.text)
            return Asked(question, response, {"rationale": rationale, "verdict": verdict})
        rationale, grades = read_grades(rubric, response.text)
        return Asked(question, response, {"rationale": rationale, **grades})
    except ValueError as error:
        return Asked(question, response, reason="not_as_asked", detail=str(error))


def _line(one: Asked) -> dict[str, Any]:
    assert isinstance(one.response, Response)  # noqa: S101
    spent = {name: getattr(one.response, name) for name in _SPENT}
    return {**one.question.line, **(one.said or {}), "response_key": one.response.key, **spent}


def _rejection(one: Asked) -> dict[str, Any]:
    return {
        **one.question.line,
        "reason": one.reason,
        "detail": one.detail,
        "response_key": one.response.key if one.response else None,
        "text": one.response.text if isinstance(one.response, Response) else None,
    }


def _explain_nothing(judge: CachedTeacher, by_reason: Counter[str], rejected: list[Asked]) -> str:
    name = f"the judge {judge.provider}/{judge.model}"
    words = Counter(one.detail for one in rejected if one.reason == "teacher_failed").most_common(1)
    if words:
        return (
            f"judge: {name} gave no judgment ({dict(by_reason.most_common())}). It says: {words[0][0]}\n"
            "Look at `judge_model` (or `teacher`) in globals.yml and at the credentials, then run again: nothing is "
            "paid twice."
        )
    return (
        f"judge: {name} said nothing that can be read: {dict(by_reason.most_common())}. Raise "
        "judge.sampling.max_tokens, or set a stronger `judge_model` in globals.yml."
    )
