import csv
import io
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.datasets import SheetsDataset
from rebase.errors import RebaseError
from rebase.judging.human_grading import (
    alpha,
    as_cell,
    make_key,
    measure_agreement,
    read_sheet,
    write_form,
    write_sheet,
)
from tests.judging.test_llm_judge import RUBRIC, TASK

HOSTILE = [
    '=HYPERLINK("http://127.0.0.1/?"&A1,"click")',
    "+1;=cmd|' /C calc'!A0",
    "-2+3\n=1+1",
    "@SUM(A1)\t=2",
    '</script><img src=x onerror="document.title=1"><b>5</b>',
    "{{ 7 * 7 }} 1,800",
    "007",
    "3-4",
]
ANSWERS = [
    (f"item-{number}", system, f"Item {number}: where?", answer)
    for number, answer in enumerate(HOSTILE)
    for system, answer in (("student", answer), ("expert", f"{answer} !" if number else answer))
]
KEY = make_key(TASK, ANSWERS, 7)
SHOWN = KEY.drop_duplicates("answer_id").reset_index(drop=True)


def saved(rows=None, columns=None, delimiter=",", ending="\r\n", **given):
    """A sheet as a person returns it; ``given`` are grades by row of the sheet, ``"5,4"`` for both criteria."""
    sheet = write_sheet(KEY, RUBRIC)
    for row, grades in given.items():
        place = int(row.removeprefix("row")) - 2
        sheet.iloc[place, 3:5] = grades.split(",")
    sheet = sheet if rows is None else sheet.iloc[rows]
    sheet = sheet if columns is None else sheet[columns(list(sheet))]
    return sheet.to_csv(index=False, sep=delimiter, lineterminator=ending, quoting=csv.QUOTE_ALL)


def read(text):
    return read_sheet("grades/anna.csv", text, KEY, RUBRIC.names)


def faults(text):
    return {(cell.row, cell.criterion): cell.reason for cell in read(text) if cell.reason not in ("", "missing")}


ALL = {f"row{number}": f"{1 + number % 5},3" for number in range(2, len(SHOWN) + 2)}


# The sheet


@given(
    st.lists(st.sampled_from(["=", "+", "-", "@", "＝", ";", "\t", "\n", "\r", " ", '"', "'", "a", "1"])).map("".join)
)
def test_no_cell_is_a_formula_whatever_parts_the_cells(text):
    for part in re.split(r"[;\t\r\n]", as_cell(text)):
        assert not part.lstrip(' "').startswith(("=", "+", "-", "@", "＝"))


def test_a_cell_says_what_the_answer_says():
    assert as_cell("a = b - 3, x@y.z; 4") == "“a = b - 3, x@y.z; 4”"
    assert as_cell("=1+1") == "“'=1+1”"


def test_ids_tell_nothing_of_the_system():
    assert SHOWN["answer_id"].str.fullmatch("[b-df-hj-np-t]{10}").all()
    assert len(SHOWN) == len(KEY) - 1, "two equal answers are graded once"
    renamed = make_key(TASK, [(item, system[::-1], *rest) for item, system, *rest in ANSWERS], 7)
    assert set(renamed["answer_id"]) == set(KEY["answer_id"])
    assert list(SHOWN["item_id"]) != sorted(SHOWN["item_id"]), "shuffled"
    assert list(make_key(TASK, ANSWERS, 8)["item_id"]) != list(KEY["item_id"])
    assert not {"student", "expert"} & set(" ".join(write_sheet(KEY, RUBRIC).astype(str).stack()).split())


def test_an_id_stands_as_long_as_the_answer_does():
    later = make_key(TASK, [*ANSWERS[2:], ("item-0", "expert", "Item 0: where?", "elsewhere")], 7)
    assert set(SHOWN["answer_id"]) - set(later["answer_id"]) == set(KEY[KEY["item_id"] == "item-0"]["answer_id"])


# What comes back


def test_a_whole_sheet_comes_back():
    cells = read(saved(**ALL))
    assert len(cells) == 2 * len(SHOWN)
    assert [cell.grade for cell in cells] == [int(grade) for row in ALL.values() for grade in row.split(",")]
    assert [cell.answer_id for cell in cells[::2]] == list(SHOWN["answer_id"])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_spreadsheets_save_in_their_own_way(delimiter, ending):
    text = saved(delimiter=delimiter, ending=ending, **ALL).replace('"3"', '"3.0"').replace("\n=", "\r\n=")
    assert not faults(text)


def test_gaps_are_gaps():
    cells = read(saved(rows=range(4), row2="5,4", row3=",4", row4=","))
    given = [cell for cell in cells if not cell.reason]
    assert [(cell.row, cell.criterion, cell.grade) for cell in given] == [
        (2, "correctness", 5), (2, "form", 4), (3, "form", 4)
    ]  # fmt: skip
    assert len(cells) == 2 * len(SHOWN)
    assert {cell.reason for cell in cells} == {"", "missing"}


@given(st.lists(st.sampled_from(["", "1", "3", "5", " 2 "]), min_size=2 * len(SHOWN), max_size=2 * len(SHOWN)))
def test_a_half_filled_sheet_gives_what_it_holds(grades):
    rows = {f"row{number + 2}": ",".join(grades[2 * number : 2 * number + 2]) for number in range(len(SHOWN))}
    cells = read(saved(**rows))
    assert [cell.grade for cell in cells] == [int(grade) if grade else None for grade in grades]
    assert [cell.reason for cell in cells] == ["" if grade else "missing" for grade in grades]


@pytest.mark.parametrize("grade", ["0", "6", "4.5", "good", "-1", "nan", "1e400", "٣٣"])
def test_a_grade_off_the_scale_is_rejected_alone(grade):
    text = saved(row3=f"{grade},4")
    assert faults(text) == {(3, "correctness"): "off_scale"}
    (cell,) = (cell for cell in read(text) if cell.reason == "off_scale")
    assert (
        cell.detail
        == f"grades/anna.csv, row 3: correctness: {grade!r} is not a whole number from 1 to 5; grade it again"
    )


def test_edited_rows_are_rejected_and_the_others_kept():
    lines = list(csv.reader(io.StringIO(saved(**ALL))))
    lines[1][2] = "“another answer”"
    lines[2][0] = "bbbbbbbbbb"
    lines[4][:] = lines[3]
    out = io.StringIO()
    csv.writer(out).writerows(lines)
    both = lambda row, reason: {(row, name): reason for name in RUBRIC.names}  # noqa: E731
    assert faults(out.getvalue()) == both(2, "edited") | both(3, "unknown_id") | both(5, "repeated_id")
    assert sum(not cell.reason for cell in read(out.getvalue())) == 2 * (len(SHOWN) - 3)
    assert all("row 2" in cell.detail for cell in read(out.getvalue()) if cell.row == 2)


def test_the_sorting_of_one_column_alone_is_noticed():
    lines = list(csv.reader(io.StringIO(saved(**ALL))))
    column = sorted(line[0] for line in lines[1:])[::-1]
    for line, answer in zip(lines[1:], column, strict=True):
        line[0] = answer
    out = io.StringIO()
    csv.writer(out).writerows(lines)
    assert set(faults(out.getvalue()).values()) == {"edited"}


def test_rows_may_be_sorted_and_empty_ones_left():
    text = saved(rows=range(len(SHOWN) - 1, -1, -1), **ALL) + ",,,,,\r\n"
    assert not faults(text)
    assert sum(not cell.reason for cell in read(text)) == 2 * len(SHOWN)


def test_a_lost_column_is_told():
    with pytest.raises(RebaseError, match=r"anna\.csv: there is no column 'form' \(there are 'id'"):
        read(saved(columns=lambda names: [name for name in names if not name.startswith("form")]))
    with pytest.raises(RebaseError, match="no column 'id', 'correctness', 'form'"):
        read("")


@given(st.text(max_size=200))
def test_any_text_is_read_or_rejected(text):
    heading = "id,correctness,form\r\n"
    try:
        cells = read(heading + text)
    except RebaseError:
        return
    assert not [cell for cell in cells if not cell.reason]


def test_sheets_are_found_in_their_folder(tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert SheetsDataset(str(tmp_path)).load() == {}
    assert "so agreement is not measured. Hand out the grading form" in caplog.text
    (tmp_path / "anna.csv").write_text("id,form\n", encoding="utf-8-sig")
    (tmp_path / "bea.csv").write_bytes("id,“Zürich”".encode("cp1252"))
    assert list(SheetsDataset(str(tmp_path)).load().values()) == ["id,form\n", "id,“Zürich”"]


# Agreement


def graded(**people):
    """Grades by person, one a letter's answer: "513-" leaves the last one out."""
    lines = [
        {"person": person, "answer_id": str(place), "criterion": "form", "grade": int(grade)}
        for person, grades in people.items()
        for place, grade in enumerate(grades)
        if grade != "-"
    ]
    return pd.DataFrame(lines, columns=["person", "answer_id", "criterion", "grade"])


def test_people_who_agree_and_a_judge_who_does_not():
    agreement = measure_agreement(
        graded(anna="1525", bea="152-"), graded(judge="5141").drop(columns="person"), ["form"]
    )
    assert agreement["form"]["people"] == 1.0
    assert agreement["form"]["answers"] == 3
    assert agreement["form"]["with_judge"]["anna"] < 0 > agreement["form"]["with_judge"]["bea"]
    assert agreement["form"]["everyone"] < 1


@pytest.mark.parametrize("people", [{"anna": "1234"}, {"anna": "12--", "bea": "--34"}, {"anna": "33", "bea": "33"}])
def test_where_nothing_can_be_compared_there_is_no_agreement(people):
    agreement = measure_agreement(graded(**people), graded(judge="----").drop(columns="person"), ["form"])
    assert agreement["form"]["people"] is None
    assert set(agreement["form"]["with_judge"].values()) == {None}


def test_the_package_that_measures_agreement_may_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "krippendorff", None)
    with pytest.raises(RebaseError, match=r"pip install 'rebase\[judge\]'"):
        alpha(pd.DataFrame({"a": [1, 2], "b": [1, 2]}))


def test_near_misses_are_better_than_far_ones():
    near = alpha(pd.DataFrame({"a": [1, 2, 4, 5], "b": [2, 2, 4, 4]}))
    far = alpha(pd.DataFrame({"a": [1, 2, 4, 5], "b": [5, 2, 4, 1]}))
    assert far < near < 1


# The form


class _Seen(HTMLParser):
    """The tags of a page, and every address in it."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses, self.handlers = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "srcset")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def test_the_form_needs_nothing_beside_it_and_shows_answers_as_text():
    page = write_form(TASK, KEY, RUBRIC)
    seen = _Seen()
    seen.feed(page)
    assert (seen.addresses, seen.handlers) == ([], [])
    assert seen.tags.count("script") == seen.tags.count("style") == 1
    assert "img" not in seen.tags
    assert seen.tags.count("section") == len(SHOWN)
    assert "student" not in page.partition("<form")[2]
    assert "default-src 'none'" in page


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="there is no Chromium")
def test_the_form_in_a_browser(tmp_path):
    """Grade the first two answers, leave, come back, and save: what is saved is what was chosen."""
    first, second = SHOWN["answer_id"][:2]
    act = f"""
    window.addEventListener("error", event => {{ document.body.dataset.error = event.message; }});
    if (!person.value) {{
      person.value = "Anna B./../x";
      form.elements["{first}:correctness"][4].click();
      form.elements["{first}:form"][0].click();
      form.elements["{second}:form"][2].click();
      form.elements["{first}:note"].value = "=1+1; \\"so\\"";
      person.dispatchEvent(new Event("input"));
    }} else {{
      const hear = text => {{ document.body.dataset.saved = text; }};
      URL.createObjectURL = blob => {{ blob.text().then(hear); return "#"; }};
      HTMLAnchorElement.prototype.click = function () {{ document.body.dataset.file = this.download; }};
      document.getElementById("save").click();
      document.body.dataset.count = document.getElementById("count").textContent;
    }}
    """
    page = tmp_path / "form.html"
    page.write_text(write_form(TASK, KEY, RUBRIC).replace("</body>", f"<script>{act}</script></body>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
               "--virtual-time-budget=3000", "--dump-dom", page.as_uri()]  # fmt: skip
    for _ in range(2):
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    body = dict(_body(shown))
    assert "data-error" not in body
    assert body["data-file"] == "Anna-B-x.csv"
    assert body["data-count"] == f"1 of {len(SHOWN)} graded"
    cells = [cell for cell in read(body["data-saved"].removeprefix("\ufeff")) if not cell.reason]
    assert [(cell.answer_id, cell.criterion, cell.grade) for cell in cells] == [
        (first, "correctness", 5), (first, "form", 1), (second, "form", 3)
    ]  # fmt: skip
    assert next(csv.DictReader(io.StringIO(body["data-saved"])))["note"] == '\'=1+1; "so"'
    assert "<img" not in shown
    assert f"<title>Grading · {TASK.name}</title>" in shown


def _body(page):
    attributes = []

    class Body(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag == "body":
                attributes.extend(attrs)

    Body().feed(page)
    return attributes
