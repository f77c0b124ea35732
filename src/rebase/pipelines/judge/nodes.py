"""Judge: grades by a rubric, comparisons in both orders, and blind grading by people (docs/method.md section 8)."""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rebase.datastore.sampling import systematic_positions
from rebase.errors import RebaseError
from rebase.generation.generate import generate_all
from rebase.generation.prompts.templates import prompt_hash
from rebase.judging.human_grading import (
    count_cells,
    make_key,
    measure_agreement,
    read_sheet,
    write_form,
    write_sheet,
)
from rebase.judging.llm_judge import (
    PairPrompt,
    RubricPrompt,
    calibrate,
    compare_with_gold,
    find_doubts,
    find_pairs,
    mean_grade,
    mean_grades,
    pair_request,
    parse_grades,
    parse_verdict,
    rubric_request,
    summarize_pairs,
)
from rebase.parameters import JudgeParameters
from rebase.records import (
    GRADE_COLUMNS,
    JUDGE_REJECTED_COLUMNS,
    JUDGMENT_COLUMNS,
    REJECTED_GRADE_COLUMNS,
    Task,
    summarize_stage,
)
from rebase.teacher.cached import CachedSession, CachedTeacher
from rebase.teacher.protocol import Failure, Request, Response, why_unreadable

logger = logging.getLogger(__name__)

_COSTS = ["input_tokens", "output_tokens", "dollars"]

#: Two equal answers are a tie without a request.
SAME_ANSWERS = "same_answers"
#: Rejected grades of one sheet that are logged; the table has all of them.
_MAX_LOGGED = 3


@dataclass(frozen=True)
class Question:
    """One question to the judge: about the answer of ``system``, or which of ``first`` and ``second`` is better."""

    item_id: str
    system: str | None = None
    first: str | None = None
    second: str | None = None

    @property
    def kind(self) -> str:
        """``rubric`` or ``pair``."""
        return "rubric" if self.system is not None else "pair"


@dataclass(frozen=True)
class Judgment:
    """A question with the judge's response: what it says (``values``), or the ``reason`` why it does not count."""

    question: Question
    response: Response | Failure | None = None
    values: dict[str, Any] | None = None
    reason: str = ""
    detail: str = ""

    @property
    def line(self) -> dict[str, Any]:
        """The columns that the tables of judgments and of rejections share."""
        key = self.response.key if self.response else None
        return {"kind": self.question.kind, **vars(self.question), "response_key": key}


class SystemAnswers:
    """The systems' answers to the evaluation items; ``items`` is a systematic sample of ``limit`` of them.

    Raises RebaseError if an item is not in the evaluation set, or the pair is not among the systems.
    """

    def __init__(self, evaluation_items: pd.DataFrame, predictions: pd.DataFrame, parameters: JudgeParameters) -> None:
        self._raw = {(line["system"], line["item_id"]): line["raw_output"] for line in predictions.to_dict("records")}
        self._queries = dict(zip(evaluation_items["item_id"], evaluation_items["query"], strict=True))
        self.systems = [str(system) for system in predictions["system"].unique()]
        self.pair = parameters.pair
        items = [str(item) for item in predictions["item_id"].unique()]
        if unknown := [item for item in items if item not in self._queries]:
            raise RebaseError(
                f"judge: item {unknown[0]!r} was answered, but is not in the evaluation set ({len(unknown)} such "
                "items). Run the evaluate pipeline again, or judge with the evaluation set of that run."
            )
        if absent := [system for system in self.pair or () if system not in self.systems]:
            raise RebaseError(
                f"judge.pair names {absent[0]!r}; there are answers of: {', '.join(self.systems)}. "
                "Name two of them, or set judge.pair to null."
            )
        if not items:
            raise RebaseError("judge: there are no answers. Run the evaluate pipeline first.")
        self.items = [items[index] for index in systematic_positions(len(items), parameters.limit or len(items))]
        self.over_limit = sorted(set(items) - set(self.items))

    def query(self, item: str) -> str:
        """The query of an item."""
        return self._queries[item]

    def answer(self, system: str | None, item: str) -> str:
        """The raw output of a system for an item."""
        return str(self._raw[system, item])

    def questions(self, items: list[str]) -> Iterator[Question]:
        """All questions about the items: one for each answer, and two for the pair, one for each order."""
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
    judge_rubric: RubricPrompt,
    judge_pair: PairPrompt,
    parameters: JudgeParameters,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Have the judge grade each answer by each criterion, and compare each pair of answers in both orders.

    The judge sees the raw answers, but neither the systems' names nor the references.

    Returns:
        Judgments: a line for each answered question, with grades or a verdict and the judge's rationale; rejected
        questions with reasons; the stage summary.

    Raises:
        RebaseError: None of the judge's responses can be read.

    """
    started = time.monotonic()
    answers = SystemAnswers(evaluation_items, predictions, parameters)

    def request(question: Question) -> Request | None:
        query = answers.query(question.item_id)
        if question.system is not None:
            answer = answers.answer(question.system, question.item_id)
            return rubric_request(task, judge_rubric, query, answer, parameters.sampling)
        first, second = (answers.answer(system, question.item_id) for system in (question.first, question.second))
        same = first.strip() == second.strip()
        return None if same else pair_request(task, judge_pair, query, first, second, parameters.sampling)

    questions = [(question, request(question)) for question in answers.questions(answers.items)]

    async def generate(session: CachedSession, pair: tuple[Question, Request | None]) -> Judgment:
        question, request = pair
        if request is None:
            return Judgment(question, reason=SAME_ANSWERS)
        return _parse(judge_rubric, question, await session.generate(request))

    results, usage = generate_all(
        judge, questions, generate, lambda judgment: judgment.values is not None,
        stage="judge", total=len(questions),
    )  # fmt: skip
    results += [Judgment(question, reason="over_limit") for question in answers.questions(answers.over_limit)]
    rejected = [result for result in results if result.values is None]
    by_reason = Counter(result.reason for result in rejected)
    if len(rejected) == len(results):
        raise RebaseError(_explain_no_judgment(judge, by_reason, rejected))
    name = f"{judge.provider}/{judge.model}"
    hashes = {"rubric": prompt_hash(judge_rubric, task), "pair": prompt_hash(judge_pair, task)}
    details = ["verdict", "rationale", "response_key", "judge", "prompt_hash"]
    columns = [*JUDGMENT_COLUMNS, *judge_rubric.names, *details, *_COSTS]
    lines = [
        {**result.line, **result.values, "judge": name, "prompt_hash": hashes[result.question.kind]}
        | {cost: getattr(result.response, cost) for cost in _COSTS}
        for result in results
        if result.values
    ]
    # The types are the same in a table of grades alone, of verdicts alone, or of both.
    judgments = pd.DataFrame(lines, columns=columns).astype(dict.fromkeys(judge_rubric.names, "float64"))
    rejections = [
        {
            **result.line,
            "reason": result.reason,
            "detail": result.detail,
            "text": getattr(result.response, "text", None),
        }
        for result in rejected
    ]
    summary = summarize_stage(
        "judge",
        kept=len(judgments),
        rejected=by_reason,
        seconds=time.monotonic() - started,
        judge=name,
        kinds=judgments["kind"].value_counts().to_dict(),
        usage=usage.summary(),
    )
    return judgments, pd.DataFrame(rejections, columns=JUDGE_REJECTED_COLUMNS), summary


def score_judgments(
    task: Task,
    predictions: pd.DataFrame,
    judgments: pd.DataFrame,
    judge_rejected: pd.DataFrame,
    judge_rubric: RubricPrompt,
    parameters: JudgeParameters,
) -> dict[str, Any]:
    """Aggregate the judgments, and measure how far the judge can be trusted.

    Returns:
        ``grades`` (1 to 5) of each system with intervals, and paired ``differences``; ``pairwise``: win, tie and loss
        rates and position bias (percent), and agreement with each metric that tells two answers apart;
        ``calibration`` of each criterion against each metric, for answers with references; ``doubts`` as sentences.

    """
    names = judge_rubric.names
    metrics = [metric for metric in task.metrics if metric in predictions]
    has_references = predictions["references"].map(lambda references: bool(json.loads(references)))
    gold = predictions[has_references].dropna(subset=metrics).set_index(["system", "item_id"])[metrics]
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
        one, other = parameters.pair
        differences = _of_system(graded, one)[list(names)] - _of_system(graded, other)[list(names)]
        scores["differences"] = {
            f"{one} - {other}": {name: mean_grade(differences.dropna()[name], parameters) for name in names}
        }
        pairs, in_one_order = find_pairs(judgments, one, other)
        same = int((judge_rejected["reason"] == SAME_ANSWERS).sum()) // 2
        gains = (_of_system(gold, one) - _of_system(gold, other)).dropna()
        scores["pairwise"] = {
            "systems": [one, other],
            "in_one_order": in_one_order,
            **summarize_pairs(pairs.values(), same, parameters),
            "gold": {metric: compare_with_gold(pairs, gains[metric].to_dict()) for metric in gains},
        }
    scores["doubts"] = find_doubts(graded, names, scores)
    for doubt in scores["doubts"]:
        logger.warning("judge: do not trust %s: %s", scores["judge"], doubt)
    return scores


def write_sheets(
    task: Task,
    evaluation_items: pd.DataFrame,
    predictions: pd.DataFrame,
    judge_rubric: RubricPrompt,
    parameters: JudgeParameters,
) -> tuple[pd.DataFrame, str, pd.DataFrame]:
    """Write a blind sheet of ``sheet_items`` judged items: as a table, as an HTML form, and the key to both."""
    answers = SystemAnswers(evaluation_items, predictions, parameters)
    items = [answers.items[index] for index in systematic_positions(len(answers.items), parameters.sheet_items)]
    lines = [
        (item, question.system, answers.query(item), answers.answer(question.system, item))
        for question in answers.questions(items)
        if question.system is not None
        for item in [question.item_id]
    ]
    key = make_key(task, lines, parameters.seed)
    return write_sheet(key, judge_rubric), write_form(task, key, judge_rubric), key


def read_grades(
    returned_sheets: dict[str, str], grading_key: pd.DataFrame, judge_rubric: RubricPrompt
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Read the returned sheets, one for each person, and check every grade.

    Returns:
        One line for each grade: ``person``, ``answer_id``, ``item_id``, ``criterion``, ``grade``; rejected grades with
        file, row and what to do; the summary with counts for each person, where a missing grade counts as rejected.
        All are empty without sheets.

    Raises:
        RebaseError: A sheet lacks a column, or the sheets hold no grade at all.

    """
    started = time.monotonic()
    names = judge_rubric.names
    items = dict(zip(grading_key["answer_id"], grading_key["item_id"], strict=True))
    grades: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    people: dict[str, dict[str, int]] = {}
    for file, text in returned_sheets.items():
        person = Path(file).stem
        cells = read_sheet(file, text, grading_key, names)
        people[person] = count_cells(cells)
        wrong = [cell for cell in cells if cell.reason not in ("", "missing")]
        for cell in wrong[:_MAX_LOGGED]:
            logger.warning("judge: rejected: %s", cell.detail)
        if len(wrong) > _MAX_LOGGED:
            logger.warning("judge: %d more of %s are in grades_rejected", len(wrong) - _MAX_LOGGED, file)
        for cell in cells:
            line = {"person": person, "file": file, "item_id": items.get(cell.answer_id), **vars(cell)}
            (rejected if cell.reason else grades).append(line)
    by_reason = Counter(line["reason"] for line in rejected)
    if returned_sheets and not grades:
        raise RebaseError(
            f"judge: there is no grade in {', '.join(returned_sheets)}: {dict(by_reason.most_common())}. "
            "If the answers have changed since the sheet was written, hand out a new one."
        )
    summary = summarize_stage(
        "agreement", kept=len(grades), rejected=by_reason, seconds=time.monotonic() - started, people=people
    )
    table = pd.DataFrame(rejected, columns=REJECTED_GRADE_COLUMNS).astype({"row": "Int64"})
    return pd.DataFrame(grades, columns=GRADE_COLUMNS), table, summary


def compare_graders(
    task: Task,
    grades: pd.DataFrame,
    grading_key: pd.DataFrame,
    judgments: pd.DataFrame,
    judge_rubric: RubricPrompt,
    parameters: JudgeParameters,
) -> dict[str, Any]:
    """Measure how far people agree with one another and with the judge, and average their grades.

    Returns:
        ``agreement`` by criterion (see ``measure_agreement``); ``grades``: each system's mean over its answers of the
        mean over people, with the interval over answers. Both are empty without grades.

    """
    names = list(judge_rubric.names)
    owners = grading_key[["answer_id", "item_id", "system"]]
    judged = judgments[judgments["kind"] == "rubric"].merge(owners, on=["item_id", "system"])
    by_judge = (
        judged.drop_duplicates("answer_id")
        .melt("answer_id", names, var_name="criterion", value_name="grade")
        .dropna(subset="grade")
    )
    by_answer = grades.pivot_table(index="answer_id", columns="criterion", values="grade", aggfunc="mean")
    by_system = owners.join(by_answer.reindex(columns=names), on="answer_id")
    return {
        "task": task.name,
        "people": sorted(grades["person"].unique()),
        "judge": judgments["judge"].iloc[0],
        "confidence": parameters.confidence,
        "agreement": {} if grades.empty else measure_agreement(grades, by_judge, names),
        "grades": {} if grades.empty else mean_grades(by_system, names, parameters),
    }


def _parse(rubric: RubricPrompt, question: Question, response: Response | Failure) -> Judgment:
    if isinstance(response, Failure) or response.finish != "stop":
        detail = response.reason if isinstance(response, Failure) else ""
        return Judgment(question, response, reason=why_unreadable(response), detail=detail)
    try:
        if question.system is None:
            rationale, verdict = parse_verdict(response.text)
            return Judgment(question, response, {"rationale": rationale, "verdict": verdict})
        rationale, grades = parse_grades(rubric, response.text)
        return Judgment(question, response, {"rationale": rationale, **grades})
    except ValueError as error:
        return Judgment(question, response, reason="invalid_response", detail=str(error))


def _explain_no_judgment(judge: CachedTeacher, by_reason: Counter[str], rejected: list[Judgment]) -> str:
    name, counts = f"the judge {judge.provider}/{judge.model}", dict(by_reason.most_common())
    failures = Counter(result.detail for result in rejected if result.reason == "teacher_failed").most_common(1)
    if failures:
        return (
            f"judge: {name} gave no judgment ({counts}). Its error: {failures[0][0]}\nCheck `judge_model` (or "
            "`teacher`) in globals.yml and the credentials, then run again: cached responses are not paid twice."
        )
    return (
        f"judge: no response of {name} can be read: {counts}. Raise judge.sampling.max_tokens, or set a stronger "
        "`judge_model` in globals.yml."
    )


def _of_system(table: pd.DataFrame, system: str) -> pd.DataFrame:
    """The lines of one system in a table by system and item, by item."""
    return table[table.index.get_level_values(0) == system].droplevel(0)
