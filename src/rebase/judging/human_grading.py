"""Grading by people: a blind sheet to hand out, what comes back, and how far people and the judge agree.

An answer goes under an id that tells nothing of its system; two systems' equal answers to an item are graded once. The
key says whose each one is.
"""

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from rebase.errors import RebaseError
from rebase.judging.llm_judge import SCALE, RubricPrompt
from rebase.records import Task

KEY_COLUMNS = ["answer_id", "item_id", "system", "query", "answer"]
GRADE_COLUMNS = ["person", "answer_id", "item_id", "criterion", "grade"]
REJECTED_COLUMNS = ["person", "file", "row", "answer_id", "criterion", "reason", "detail"]

_LETTERS = str.maketrans("0123456789abcdef", "bcdfghjklmnpqrst")
#: What a spreadsheet takes for the beginning of a formula, where a cell may begin: at a line, a tab or a semicolon,
#: which parts cells in many countries.
_FORMULA = re.compile(r"(^|[;\t\r\n])([\s\"']*)(?=[=+\-@＝＋－＠])")


def make_key(task: Task, answers: Iterable[tuple[str, str, str, str]], seed: int) -> pd.DataFrame:
    """Which id stands for which answer: a line for each ``(item_id, system, query, answer)``, in the sheet's order.

    Ids are hashes in letters, which no spreadsheet takes for a number, and say the same as long as the answer does: a
    sheet that is out is still good after another run. The order of the ids is that of the sheet: shuffled.
    """
    lines = [(_answer_id(seed, task.name, item, query, answer), item, system, query, answer)
             for item, system, query, answer in answers]  # fmt: skip
    return pd.DataFrame(lines, columns=KEY_COLUMNS).sort_values("answer_id", kind="stable", ignore_index=True)


def write_sheet(key: pd.DataFrame, rubric: RubricPrompt) -> pd.DataFrame:
    """The sheet as a table: ``id``, ``query`` and ``answer``, and an empty column for each criterion and a ``note``."""
    shown = key.drop_duplicates("answer_id")
    columns = {"id": shown["answer_id"], "query": shown["query"].map(as_cell), "answer": shown["answer"].map(as_cell)}
    headings = [f"{criterion.name}: {criterion.in_words}" for criterion in rubric.criteria]
    return pd.DataFrame({**columns, **dict.fromkeys(headings, ""), "note": ""})


def write_form(task: Task, key: pd.DataFrame, rubric: RubricPrompt) -> str:
    """The sheet as one HTML page that works from a file: it keeps what is chosen, and saves it as CSV."""
    environment = Environment(
        loader=PackageLoader("rebase", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    shown = key.drop_duplicates("answer_id")
    fingerprint = hashlib.sha256(" ".join([*shown["answer_id"], *rubric.names]).encode()).hexdigest()[:12]
    return environment.get_template("grading_form.html.j2").render(
        task=task, rubric=rubric, scale=SCALE, answers=shown.to_dict("records"), fingerprint=fingerprint
    )


def as_cell(text: str) -> str:
    """The text as a cell of a table that a spreadsheet opens: in quotation marks, so that it stays text.

    It is then neither a formula nor a number or date to be rewritten. Inside, where a spreadsheet that reads the table
    by another separator may begin a cell, an apostrophe keeps a formula from being one.
    """
    return "“" + _FORMULA.sub(r"\1\2'", text) + "”"


@dataclass(frozen=True)
class Cell:
    """One grade that a sheet has room for: what was given (None for none), or why it is rejected and what to do."""

    answer_id: str
    row: int | None
    criterion: str
    grade: int | None = None
    reason: str = ""
    detail: str = ""


def read_sheet(file: str, text: str, key: pd.DataFrame, names: Sequence[str]) -> list[Cell]:
    """The grades of a sheet that came back; rows are counted as a spreadsheet does, the heading is row 1.

    Rejected are a grade that is ``missing`` (or its whole row), ``off_scale``, one of an ``unknown_id``, of a
    ``repeated_id``, or one whose text is ``edited``, for then the grade may be another answer's. Raises RebaseError
    where columns are missing.
    """
    # Spreadsheets write the separator of their country; by the wrong one few columns are found.
    tables = [list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)) for delimiter in ",;\t"]
    columns, rows = max(map(_columns, tables), key=lambda table: len({"id", *names} & table[0].keys()))
    if absent := [name for name in ("id", *names) if name not in columns]:
        raise RebaseError(
            f"{file}: there is no column {', '.join(map(repr, absent))} (there are {', '.join(map(repr, columns))}). "
            "Put the sheet's first row back as it was, and save it as CSV."
        )
    known = key.drop_duplicates("answer_id").set_index("answer_id")
    cells: list[Cell] = []
    seen: set[str] = set()
    for row, values in enumerate(rows, start=2):
        said = {name: values[place].strip() if place < len(values) else "" for name, place in columns.items()}
        if not any(said.values()):
            continue
        answer = said["id"]
        fault = _fault(said, answer, known, seen)
        seen.add(answer)
        for name in names:
            reason, detail = fault or _off_scale(said[name])
            grade = None if reason else int(float(said[name]))
            where = f"{file}, row {row}: {name}: {detail}" if detail else ""
            cells.append(Cell(answer, row, name, grade, reason, where))
    unseen = [answer for answer in known.index if answer not in seen]
    gone = f"{file}: the row is not there; it counts as not graded"
    return cells + [Cell(answer, None, name, None, "missing", gone) for answer in unseen for name in names]


def measure_agreement(grades: pd.DataFrame, judged: pd.DataFrame, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Krippendorff's alpha for ordinal grades, by criterion: 1 is full agreement, 0 is that of chance.

    ``people`` among all of them, ``with_judge`` for each person and the judge, ``everyone`` with the judge as one more
    grader; None where there are no two graders of one answer, or the grades do not vary. ``grades`` and ``judged`` have
    ``answer_id``, ``criterion`` and ``grade``, the first a ``person``; ``answers`` is how many two people graded.
    """
    found = {}
    for name in names:
        by_person = grades[grades["criterion"] == name].pivot(index="answer_id", columns="person", values="grade")
        judge = judged[judged["criterion"] == name].set_index("answer_id")["grade"].reindex(by_person.index)
        found[name] = {
            "answers": int((by_person.notna().sum(axis=1) > 1).sum()),
            "people": alpha(by_person),
            "with_judge": {str(person): alpha(pd.DataFrame({0: by_person[person], 1: judge})) for person in by_person},
            "everyone": alpha(by_person.assign(**{"": judge})),
        }
    return found


def alpha(table: pd.DataFrame) -> float | None:
    """Krippendorff's ordinal alpha of a table with a line an answer and a column a grader; None where it has none."""
    try:
        import krippendorff
    except ImportError:
        raise RebaseError("agreement needs the package krippendorff: pip install 'rebase[judge]'") from None

    compared = table[table.notna().sum(axis=1) > 1].to_numpy(dtype=float)
    if len(np.unique(compared[~np.isnan(compared)])) < 2:
        return None
    value = krippendorff.alpha(compared.T, value_domain=list(SCALE), level_of_measurement="ordinal")
    return round(float(value), 3)


def count_cells(cells: Sequence[Cell]) -> dict[str, int]:
    """How many grades were given, and how many not, by reason."""
    return dict(Counter(cell.reason or "graded" for cell in cells).most_common())


def _answer_id(seed: int, *parts: str) -> str:
    digest = hashlib.sha256("\x00".join([str(seed), *parts]).encode("utf-8", "surrogatepass")).hexdigest()
    return digest[:10].translate(_LETTERS)


def _columns(table: list[list[str]]) -> tuple[dict[str, int], list[list[str]]]:
    """The places of a table's columns by name, as its first row has them, and the other rows."""
    heading = table[0] if table else []
    return {name.partition(":")[0].strip().lower(): place for place, name in enumerate(heading)}, table[1:]


def _fault(said: dict[str, str], answer: str, known: pd.DataFrame, seen: set[str]) -> tuple[str, str] | None:
    """Why no grade of a row counts, and what to do; None where nothing is wrong."""
    if answer not in known.index:
        return "unknown_id", f"the id {answer!r} is not on the sheet; put the sheet's own id back"
    if answer in seen:
        return "repeated_id", f"the id {answer!r} was in a row before; leave one of the two"
    for name in ("query", "answer"):
        if name in said and _bare(said[name]) != _bare(as_cell(known.at[answer, name])):
            return "edited", f"the {name} is not the one of {answer!r}; put back what the sheet had, or grade it anew"
    return None


def _off_scale(said: str) -> tuple[str, str]:
    if not said:
        return "missing", "no grade; it counts as not graded"
    try:
        fits = float(said) in SCALE
    except ValueError:
        fits = False
    return (
        ("", "") if fits else ("off_scale", f"{said!r} is no whole number from {SCALE[0]} to {SCALE[-1]}; grade anew")
    )


def _bare(text: str) -> str:
    """The text without what spreadsheets change of themselves: the kind and number of its spaces."""
    return "".join(text.split())
