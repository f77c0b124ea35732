"""Agreement: what people graded, and how far they and the judge agree (docs/method.md section 8)."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.judging.human_grading import GRADE_COLUMNS, REJECTED_COLUMNS, count_cells, measure_agreement, read_sheet
from rebase.judging.llm_judge import RUBRIC_FILE, RubricPrompt, mean_grades
from rebase.parameters import JudgeParameters
from rebase.records import Task

logger = logging.getLogger(__name__)

#: So many faults of a sheet are told; the table has them all.
_TOLD = 3


def read_grades(
    returned_sheets: dict[str, str], grading_key: pd.DataFrame, judge_rubric: dict[str, Any]
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Read the sheets that came back, one a person, and check every grade.

    Returns:
        A line a grade: ``person``, ``answer_id``, ``item_id``, ``criterion``, ``grade``; those rejected, with file, row
        and what to do; the summary, which counts gaps as rejected, with the counts of each person.

    Raises:
        RebaseError: A sheet has lost a column, or there is no grade at all.

    """
    names = RubricPrompt.parse(judge_rubric, RUBRIC_FILE).names
    items = dict(zip(grading_key["answer_id"], grading_key["item_id"], strict=True))
    grades: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    people: dict[str, dict[str, int]] = {}
    for file, text in returned_sheets.items():
        person = Path(file).stem
        cells = read_sheet(file, text, grading_key, names)
        people[person] = count_cells(cells)
        faults = [cell for cell in cells if cell.reason not in ("", "missing")]
        for cell in faults[:_TOLD]:
            logger.warning("agreement: rejected: %s", cell.detail)
        if len(faults) > _TOLD:
            logger.warning("agreement: %d more of %s are in grades_rejected", len(faults) - _TOLD, file)
        for cell in cells:
            line = {"person": person, "file": file, **vars(cell)}
            if cell.reason:
                rejected.append(line)
            else:
                grades.append({**line, "item_id": items[cell.answer_id]})
    by_reason = Counter(line["reason"] for line in rejected)
    if not grades:
        raise RebaseError(
            f"agreement: there is no grade in {', '.join(returned_sheets)}: {dict(by_reason.most_common())}. "
            "If the answers have changed since the sheet was written, hand out a new one."
        )
    summary = {
        "stage": "agreement",
        "in": len(grades) + len(rejected),
        "kept": len(grades),
        "rejected": dict(by_reason.most_common()),
        "people": people,
    }
    table = pd.DataFrame(rejected, columns=REJECTED_COLUMNS).astype({"row": "Int64"})
    return pd.DataFrame(grades, columns=GRADE_COLUMNS), table, summary


def compare_graders(
    task: Task,
    grades: pd.DataFrame,
    grading_key: pd.DataFrame,
    judgments: pd.DataFrame,
    judge_rubric: dict[str, Any],
    parameters: JudgeParameters,
) -> dict[str, Any]:
    """How far people agree with one another and with the judge, and what they gave each system.

    ``agreement`` by criterion (see ``measure_agreement``); ``grades``: each system's mean over its answers of the mean
    over people, with the interval over answers.
    """
    names = list(RubricPrompt.parse(judge_rubric, RUBRIC_FILE).names)
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
        "agreement": measure_agreement(grades, by_judge, names),
        "grades": mean_grades(by_system, names, parameters),
    }
