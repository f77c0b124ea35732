"""Judge: grades by a rubric, comparisons in both orders, and blind grading by people (docs/method.md section 8)."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from rebase.datastore.sampling import systematic_positions
from rebase.errors import RebaseError, StageError
from rebase.generation.filters.base import Rejection
from rebase.generation.generate import generate_all, read_response
from rebase.generation.prompts.templates import prompt_hash
from rebase.judging import human_grading, llm_judge
from rebase.judging.llm_judge import PairPrompt, RubricPrompt
from rebase.parameters import JudgeParameters
from rebase.records import (
    GRADE_COLUMNS,
    JUDGE_REJECTED_COLUMNS,
    JUDGMENT_COLUMNS,
    REJECTED_GRADE_COLUMNS,
    Task,
    summarize_stage,
)
from rebase.student.answering import FEW_SHOT
from rebase.teacher.cached import CachedSession, CachedTeacher
from rebase.teacher.protocol import Failure, Response

logger = logging.getLogger(__name__)

Line = dict[str, Any]

_COSTS = ("input_tokens", "output_tokens", "dollars")
#: Two equal answers are a tie without a request.
SAME_ANSWERS = "same_answers"
#: Rejected grades of one sheet that are logged; the table has all of them.
_MAX_LOGGED = 3


class SystemAnswers:
    """The systems' answers to the evaluation items.

    ``items`` is a systematic sample of ``limit`` of the items, ``over_limit`` are the others. ``queries`` are by item,
    ``texts`` (the answers) by system and item. Raises RebaseError if an item is not in the evaluation set, or the pair
    is not among the systems.
    """

    def __init__(self, evaluation_items: pd.DataFrame, predictions: pd.DataFrame, parameters: JudgeParameters) -> None:
        # It shows whether training is worth it, and would cost a third more: it is judged only if `pair` names it.
        if FEW_SHOT not in (parameters.pair or ()):
            predictions = predictions[predictions["system"] != FEW_SHOT]
        keys = zip(predictions["system"], predictions["item_id"], strict=True)
        self.texts: dict[tuple[str, str], str] = dict(zip(keys, predictions["raw_output"].astype(str), strict=True))
        self.queries = dict(zip(evaluation_items["item_id"], evaluation_items["query"], strict=True))
        self._systems = predictions["system"].unique().tolist()
        self._pair = parameters.pair
        items = predictions["item_id"].unique().tolist()
        if unknown := [item for item in items if item not in self.queries]:
            raise RebaseError(
                f"judge: item {unknown[0]!r} was answered, but is not in the evaluation set ({len(unknown)} such "
                "items). Run the evaluate pipeline again, or judge with the evaluation set of that run."
            )
        if absent := [system for system in self._pair or () if system not in self._systems]:
            raise RebaseError(
                f"judge.pair names {absent[0]!r}; there are answers of: {', '.join(self._systems)}. "
                "Name two of them, or set judge.pair to null."
            )
        if not items:
            raise RebaseError("judge: there are no answers. Run the evaluate pipeline first.")
        self.items = [items[index] for index in systematic_positions(len(items), parameters.limit or len(items))]
        self.over_limit = sorted(set(items) - set(self.items))

    def questions(self, items: list[str]) -> Iterator[Line]:
        """The questions about the items, as lines of ``judgments``: one for each answer, two for the pair.

        The two have the answers of the pair in different orders.
        """
        for item in items:
            answered = [system for system in self._systems if (system, item) in self.texts]
            lines: list[tuple[str | None, ...]] = [("rubric", item, system, None, None) for system in answered]
            if self._pair and {*self._pair} <= {*answered}:
                lines += [("pair", item, None, *order) for order in (self._pair, self._pair[::-1])]
            yield from (dict(zip(JUDGMENT_COLUMNS, line, strict=True)) for line in lines)


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
        StageError: None of the judge's responses can be read.

    """
    started = time.monotonic()
    answers = SystemAnswers(evaluation_items, predictions, parameters)

    async def judge_one(session: CachedSession, question: Line) -> Line:
        item = question["item_id"]
        query = answers.queries[item]
        if question["kind"] == "rubric":
            answer = answers.texts[question["system"], item]
            response = await session.generate(
                llm_judge.rubric_request(task, judge_rubric, query, answer, parameters.sampling)
            )
            return _read(question, response, partial(llm_judge.parse_grades, judge_rubric))
        first, second = (answers.texts[question[place], item] for place in ("first", "second"))
        if first.strip() == second.strip():
            return _reject(question, SAME_ANSWERS)
        response = await session.generate(
            llm_judge.pair_request(task, judge_pair, query, first, second, parameters.sampling)
        )
        return _read(question, response, llm_judge.parse_verdict)

    questions = list(answers.questions(answers.items))
    lines, usage = generate_all(judge, questions, judge_one, _is_judged, stage="judge")
    lines += [_reject(question, "over_limit") for question in answers.questions(answers.over_limit)]
    judged, rejected = list(filter(_is_judged, lines)), [line for line in lines if not _is_judged(line)]
    by_reason = Counter(line["reason"] for line in rejected)
    name = f"{judge.provider}/{judge.model}"
    rejected_table = pd.DataFrame(rejected, columns=JUDGE_REJECTED_COLUMNS)
    if not judged:
        raise StageError(_explain_no_judgment(name, by_reason, rejected), rejected_table)
    details = ["verdict", "rationale", "response_key", "judge", "prompt_hash"]
    judgments = pd.DataFrame(judged, columns=[*JUDGMENT_COLUMNS, *judge_rubric.names, *details, *_COSTS])
    hashes = {"rubric": prompt_hash(judge_rubric, task), "pair": prompt_hash(judge_pair, task)}
    judgments = judgments.assign(judge=name, prompt_hash=judgments["kind"].map(hashes))
    # The types are the same in a table of grades alone, of verdicts alone, or of both.
    judgments = judgments.astype(dict.fromkeys(judge_rubric.names, "float64"))
    summary = summarize_stage(
        "judge", kept=len(judged), rejected=by_reason, seconds=time.monotonic() - started, judge=name,
        kinds=judgments["kind"].value_counts().to_dict(), usage=usage.summary(),
    )  # fmt: skip
    return judgments, rejected_table, summary


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
    has_references = predictions["references"] != "[]"
    gold = predictions[has_references].dropna(subset=metrics).set_index(["system", "item_id"])[metrics]
    graded = judgments[judgments["kind"] == "rubric"].set_index(["system", "item_id"])
    both = graded.join(gold, how="inner")
    scores: dict[str, Any] = {
        "task": task.name,
        "judge": judgments["judge"].iloc[0],
        "confidence": parameters.confidence,
        "grades": llm_judge.mean_grades(graded.reset_index(), names, parameters),
        "calibration": {
            name: {metric: llm_judge.calibrate(both[name], both[metric]) for metric in metrics} for name in names
        },
    }
    if parameters.pair:
        one, other = parameters.pair
        differences = (_of_system(graded, one)[[*names]] - _of_system(graded, other)[[*names]]).dropna()
        scores["differences"] = {
            f"{one} - {other}": {name: llm_judge.mean_grade(differences[name], parameters) for name in names}
        }
        pairs, in_one_order = llm_judge.find_pairs(judgments, one, other)
        same = int((judge_rejected["reason"] == SAME_ANSWERS).sum()) // 2
        gains = (_of_system(gold, one) - _of_system(gold, other)).dropna()
        scores["pairwise"] = {
            "systems": [one, other],
            "in_one_order": in_one_order,
            **llm_judge.summarize_pairs(pairs.values(), same, parameters),
            "gold": {metric: llm_judge.compare_with_gold(pairs, gains[metric].to_dict()) for metric in gains},
        }
    scores["doubts"] = llm_judge.find_doubts(graded, names, scores)
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
        (item, system, answers.queries[item], text) for (system, item), text in answers.texts.items() if item in items
    ]
    key = human_grading.make_key(task, lines, parameters.seed)
    return human_grading.write_sheet(key, judge_rubric), human_grading.write_form(task, key, judge_rubric), key


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
    items = dict(zip(grading_key["answer_id"], grading_key["item_id"], strict=True))
    grades: list[Line] = []
    rejected: list[Line] = []
    people: dict[str, dict[str, int]] = {}
    for file, text in returned_sheets.items():
        person = Path(file).stem
        cells = human_grading.read_sheet(file, text, grading_key, judge_rubric.names)
        people[person] = dict(Counter(cell.reason or "graded" for cell in cells).most_common())
        wrong = [cell for cell in cells if cell.reason not in ("", "missing")]
        for cell in wrong[:_MAX_LOGGED]:
            logger.warning("judge: rejected: %s", cell.detail)
        if len(wrong) > _MAX_LOGGED:
            logger.warning("judge: %d more of %s are in grades_rejected", len(wrong) - _MAX_LOGGED, file)
        for cell in cells:
            line = {"person": person, "file": file, "item_id": items.get(cell.answer_id), **vars(cell)}
            (rejected if cell.reason else grades).append(line)
    by_reason = Counter(line["reason"] for line in rejected)
    table = pd.DataFrame(rejected, columns=REJECTED_GRADE_COLUMNS).astype({"row": "Int64"})
    if returned_sheets and not grades:
        raise StageError(
            f"judge: there is no grade in {', '.join(returned_sheets)}: {dict(by_reason.most_common())}. "
            "If the answers have changed since the sheet was written, hand out a new one.",
            table,
        )
    summary = summarize_stage(
        "agreement", kept=len(grades), rejected=by_reason, seconds=time.monotonic() - started, people=people
    )
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
    by_judge = judged.drop_duplicates("answer_id").melt("answer_id", names, "criterion", "grade").dropna(subset="grade")
    by_answer = grades.pivot_table(index="answer_id", columns="criterion", values="grade", aggfunc="mean")
    by_system = owners.join(by_answer.reindex(columns=names), on="answer_id")
    return {
        "task": task.name,
        "people": sorted(grades["person"].unique()),
        "judge": judgments["judge"].iloc[0],
        "confidence": parameters.confidence,
        "agreement": {} if grades.empty else human_grading.measure_agreement(grades, by_judge, names),
        "grades": {} if grades.empty else llm_judge.mean_grades(by_system, names, parameters),
    }


def _read(question: Line, response: Response | Failure, parse: Callable[[str], Line]) -> Line:
    """The question with the content of a response, or with the reason why there is none."""
    content = read_response(response, parse)
    if isinstance(content, Rejection):
        return _reject(question, content.reason, content.detail, response)
    costs = {name: getattr(response, name) for name in _COSTS}
    return question | content | {"response_key": response.key} | costs


def _reject(question: Line, reason: str, detail: str = "", response: Response | Failure | None = None) -> Line:
    outcome = {"reason": reason, "detail": detail, "text": getattr(response, "text", None)}
    return question | outcome | {"response_key": response.key if response else None}


def _is_judged(line: Line) -> bool:
    return "rationale" in line


def _explain_no_judgment(judge: str, by_reason: Counter[str], rejected: list[Line]) -> str:
    counts = dict(by_reason.most_common())
    if failures := Counter(line["detail"] for line in rejected if line["reason"] == "teacher_failed"):
        return (
            f"judge: the judge {judge} gave no judgment ({counts}). Its error: {failures.most_common(1)[0][0]}\n"
            "Check `judge_model` (or `teacher`) in globals.yml and the credentials, then run again: cached responses "
            "are not paid twice."
        )
    return (
        f"judge: no response of the judge {judge} can be read: {counts}. Raise judge.sampling.max_tokens, or set a "
        "stronger `judge_model` in globals.yml."
    )


def _of_system(table: pd.DataFrame, system: str) -> pd.DataFrame:
    """The lines of one system in a table by system and item, by item."""
    return table[table.index.get_level_values(0) == system].droplevel(0)
