"""Grading by people: a blind sheet, the returned grades, and the agreement of people and judge.

Each answer has an id that does not reveal its system; two systems' equal answers to an item are graded once. The key
maps ids to systems.
"""

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from rebase.errors import RebaseError
from rebase.judging.llm_judge import SCALE, RubricPrompt
from rebase.records import KEY_COLUMNS, Task

_LETTERS = str.maketrans("0123456789abcdef", "bcdfghjklmnpqrst")
#: The start of a formula for a spreadsheet, wherever a cell can start: at a line, a tab or a semicolon, which
#: separates cells in many countries.
_FORMULA = re.compile(r"(^|[;\t\r\n])([\s\"']*)(?=[=+\-@＝＋－＠])")


def make_key(task: Task, answers: Iterable[tuple[str, str, str, str]], seed: int) -> pd.DataFrame:
    """Assign an id to each ``(item_id, system, query, answer)``; the lines are shuffled, by id.

    An id is a hash in letters, which no spreadsheet reads as a number. It depends on the answer alone: a sheet stays
    valid after another run with the same answers.
    """
    lines = [
        (_answer_id(seed, task.name, item, query, answer), item, system, query, answer)
        for item, system, query, answer in answers
    ]
    return pd.DataFrame(lines, columns=KEY_COLUMNS).sort_values("answer_id", kind="stable", ignore_index=True)


def write_sheet(key: pd.DataFrame, rubric: RubricPrompt) -> pd.DataFrame:
    """The sheet as a table: ``id``, ``query``, ``answer``, and empty columns for each criterion and a ``note``."""
    shown = key.drop_duplicates("answer_id")
    columns = {"id": shown["answer_id"], "query": shown["query"].map(as_cell), "answer": shown["answer"].map(as_cell)}
    headings = [f"{criterion.name}: {criterion.in_words}" for criterion in rubric.criteria]
    return pd.DataFrame({**columns, **dict.fromkeys(headings, ""), "note": ""})


def write_form(task: Task, key: pd.DataFrame, rubric: RubricPrompt) -> str:
    """The sheet as one HTML page that works from a file: it remembers the grades and saves them as CSV."""
    environment = Environment(
        loader=PackageLoader("rebase.judging", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    shown = key.drop_duplicates("answer_id")
    fingerprint = hashlib.sha256(" ".join([*shown["answer_id"], *rubric.names]).encode()).hexdigest()[:12]
    return environment.get_template("grading_form.html.j2").render(
        task=task, rubric=rubric, scale=SCALE, answers=shown.to_dict("records"), fingerprint=fingerprint
    )


def as_cell(text: str) -> str:
    """Quote a text so that spreadsheets keep it as text, not as a formula, number or date.

    Inside, an apostrophe disables formulas wherever a spreadsheet with another separator could start a cell.
    """
    return "“" + _FORMULA.sub(r"\1\2'", text) + "”"


@dataclass(frozen=True)
class Cell:
    """One cell for a grade: the grade (None if there is none), or the reason for its rejection and what to do."""

    answer_id: str
    row: int | None
    criterion: str
    grade: int | None = None
    reason: str = ""
    detail: str = ""


def read_sheet(file: str, text: str, key: pd.DataFrame, names: Sequence[str]) -> list[Cell]:
    """Read the grades of a returned sheet; rows count as in a spreadsheet, where the heading is row 1.

    A grade is rejected if it is ``missing`` (or its row is), is ``off_scale``, has an ``unknown_id`` or a
    ``repeated_id``, or if its text was ``edited``, as it may then belong to another answer. Raises RebaseError if
    columns are missing.
    """
    # Spreadsheets use the separator of their country: the right one finds the most columns.
    tables = [list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)) for delimiter in ",;\t"]
    columns, rows = max(map(_columns, tables), key=lambda table: len({"id", *names} & table[0].keys()))
    if absent := [name for name in ("id", *names) if name not in columns]:
        raise RebaseError(
            f"{file}: there is no column {', '.join(map(repr, absent))} (there are {', '.join(map(repr, columns))}). "
            "Restore the sheet's first row, and save it as CSV."
        )
    answers = key.drop_duplicates("answer_id").set_index("answer_id")
    cells: list[Cell] = []
    seen: set[str] = set()
    for row, values in enumerate(rows, start=2):
        line = {name: values[index].strip() if index < len(values) else "" for name, index in columns.items()}
        if not any(line.values()):
            continue
        answer_id = line["id"]
        fault = _find_fault(line, answers, seen)
        seen.add(answer_id)
        for name in names:
            reason, detail = fault or _check_grade(line[name])
            grade = None if reason else int(float(line[name]))
            cells.append(Cell(answer_id, row, name, grade, reason, detail and f"{file}, row {row}: {name}: {detail}"))
    missing = f"{file}: the row is missing; it counts as not graded"
    return cells + [
        Cell(answer_id, None, name, None, "missing", missing)
        for answer_id in answers.index
        if answer_id not in seen
        for name in names
    ]


def measure_agreement(grades: pd.DataFrame, judged: pd.DataFrame, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Krippendorff's alpha for ordinal grades, by criterion: 1 is full agreement, 0 is chance.

    ``grades`` are people's (``person``, ``answer_id``, ``criterion``, ``grade``), ``judged`` the judge's. Returns for
    each of the criteria ``names``: ``answers``, the number that two people graded; alpha of ``people``, of each person
    ``with_judge``, and of ``everyone``, None if no answer has two grades, or the grades do not vary.
    """
    agreement = {}
    for name in names:
        by_person = grades[grades["criterion"] == name].pivot(index="answer_id", columns="person", values="grade")
        judge = judged[judged["criterion"] == name].set_index("answer_id")["grade"].reindex(by_person.index)
        agreement[name] = {
            "answers": int((by_person.notna().sum(axis=1) > 1).sum()),
            "people": alpha(by_person),
            "with_judge": {str(person): alpha(pd.DataFrame({0: by_person[person], 1: judge})) for person in by_person},
            "everyone": alpha(by_person.assign(**{"": judge})),
        }
    return agreement


def alpha(table: pd.DataFrame) -> float | None:
    """Krippendorff's ordinal alpha of a table ``[answers, graders]``; None if it is undefined."""
    try:
        import krippendorff
    except ImportError:
        raise RebaseError("agreement needs the package krippendorff: pip install 'rebase[judge]'") from None

    compared = table[table.notna().sum(axis=1) > 1].to_numpy(dtype=float)
    if len(np.unique(compared[~np.isnan(compared)])) < 2:
        return None
    value = krippendorff.alpha(compared.T, value_domain=list(SCALE), level_of_measurement="ordinal")
    return round(float(value), 3)


def _answer_id(seed: int, *parts: str) -> str:
    digest = hashlib.sha256("\x00".join([str(seed), *parts]).encode("utf-8", "surrogatepass")).hexdigest()
    return digest[:10].translate(_LETTERS)


def _columns(table: list[list[str]]) -> tuple[dict[str, int], list[list[str]]]:
    """The positions of a table's columns by name, and the rows below the heading."""
    heading = table[0] if table else []
    return {name.partition(":")[0].strip().lower(): index for index, name in enumerate(heading)}, table[1:]


def _find_fault(line: dict[str, str], answers: pd.DataFrame, seen: set[str]) -> tuple[str, str] | None:
    """The reason why no grade of a row counts, and what to do; None if the row is correct."""
    answer_id = line["id"]
    if answer_id not in answers.index:
        return "unknown_id", f"the id {answer_id!r} is not on the sheet; restore the sheet's id"
    if answer_id in seen:
        return "repeated_id", f"the id {answer_id!r} is in an earlier row; delete one of the two"
    for name in ("query", "answer"):
        if name in line and _without_spaces(line[name]) != _without_spaces(as_cell(answers.at[answer_id, name])):
            return "edited", f"the {name} of {answer_id!r} was changed; restore the sheet's text, or grade it again"
    return None


def _check_grade(text: str) -> tuple[str, str]:
    """The reason why a grade does not count, and what to do; two empty texts for a grade that counts."""
    if not text:
        return "missing", "no grade; it counts as not graded"
    try:
        fits = float(text) in SCALE
    except ValueError:
        fits = False
    wrong = f"{text!r} is not a whole number from {SCALE[0]} to {SCALE[-1]}; grade it again"
    return ("", "") if fits else ("off_scale", wrong)


def _without_spaces(text: str) -> str:
    """The text without spaces, whose kind and number spreadsheets change."""
    return "".join(text.split())
