import io
import json
import re
from dataclasses import replace

import pandas as pd
import pytest
from rich.console import Console

from rebase.errors import RebaseError
from rebase.generation.pilot import advise, choose_positions, estimate_full_run
from rebase.parameters import PilotParameters
from rebase.pipelines.pilot.nodes import try_rows
from rebase.records import PILOT_COLUMNS
from rebase.reporting.pilot import show_pilot, write_pilot
from tests.browser import needs_chromium, open_page
from tests.pipelines.test_estimate import PRICE, estimate
from tests.pipelines.test_transform import (
    CONTAMINATION,
    NO_EVALUATION,
    PASSAGES,
    PROMPT,
    READING,
    SUMS,
    asks_for_the_year,
    parameters,
    retrieved,
    transform,
)
from tests.scripted import Scripted, cached
from tests.teacher.server import KEY, serving
from tests.teacher.teachers import hosted

HOSTILE = "</script><img src=x onerror=alert(1)>\x1b[31m"
ROWS = retrieved(passages=[f"{passage} Again {n}." for n in range(5) for passage in PASSAGES])


def pilot(teacher, rows=ROWS, count=20, task=READING, **changes):
    return try_rows(
        task, rows, NO_EVALUATION, teacher, PROMPT, parameters(**changes), CONTAMINATION, PilotParameters(rows=count)
    )


def sometimes(request):
    """Good responses about the bells of even years; the others do not fit the row."""
    response = asks_for_the_year(request)
    year = int(json.loads(response)["example"]["answer"])
    return response if year % 2 == 0 else '{"example": null}'


def find(teacher, task=READING, rows=ROWS, **changes):
    """The pilot's table, summary and estimate."""
    table, summary = pilot(teacher, rows, task=task, **changes)
    before = estimate(task, rows, teacher, **changes)
    return table, summary, estimate_full_run(table, before, teacher, parameters(**changes))


@pytest.mark.parametrize("consistency_filter", [False, True])
def test_a_full_run_repeats_no_request_of_the_pilot(consistency_filter):
    def say(request):
        return sometimes(request) if "example" in request.schema["properties"] else '{"answer": "1600"}'

    teacher = Scripted(say)
    handle = cached(teacher, price=PRICE)
    table, summary = pilot(handle, consistency_filter=consistency_filter)
    sent = len(teacher.requests)
    assert sent == summary["usage"]["responses"] >= 20
    _, _, full = transform(
        READING, ROWS, NO_EVALUATION, handle, PROMPT, parameters(consistency_filter=consistency_filter)
    )
    assert full["usage"]["cached"] == sent
    keys = [handle.key(request) for request in teacher.requests]
    assert len(keys) == len(set(keys)) == full["usage"]["used"]
    assert list(table) == PILOT_COLUMNS


def test_a_guided_teacher_gets_the_same_requests_as_in_a_full_run():
    cells = [{"story": f"Anna has {n} pens and buys two more pens.", "note": "pens"} for n in range(30)]
    rows = retrieved(cells, query_column="story").assign(dataset=["a", "b", "c"] * 10)
    teacher = Scripted(lambda _: '{"answer": 7}')
    handle = cached(teacher)
    pilot(handle, rows, count=6, task=SUMS, guided=True)
    before = len(teacher.requests)
    transform(SUMS, rows, NO_EVALUATION, handle, PROMPT, parameters(guided=True))
    assert len(teacher.requests) == len(rows) > before == 6


def test_every_row_has_its_example_or_its_reason_with_prompt_and_response():
    table, summary = pilot(cached(Scripted(sometimes), price=PRICE))
    assert list(table["part"]) == ["top"] * 7 + ["middle"] * 7 + ["end"] * 6
    assert list(table["position"]) == [*range(1, 8), *range(27, 34), *range(55, 61)]
    kept, rejected = table[table["reason"].isna()], table[table["reason"].notna()]
    assert (summary["kept"], summary["rejected"]) == (len(kept), {"unfit_row": len(rejected)})
    assert set(kept["answer"]) <= {f"16{n:02d}" for n in range(0, 12, 2)}
    assert all(json.loads(text)[-1]["role"] == "user" for text in table["prompt"])
    assert set(rejected["response"]) == {'{"example": null}'}
    assert table["dollars"].sum() == pytest.approx(summary["usage"]["dollars"])


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20, 21, 60])
@pytest.mark.parametrize("rows", [1, 2, 5, 20])
def test_positions_are_distinct_and_in_order(count, rows):
    positions = [position for _, position in choose_positions(count, rows)]
    assert positions == sorted(set(positions))
    assert len(positions) == min(count, rows)
    assert positions[0] == 0
    assert rows < 3 or count < 3 or positions[-1] == count - 1


def test_the_cost_of_a_full_run_is_that_of_the_measured_acceptance_and_tokens():
    handle = cached(Scripted(sometimes), price=PRICE)
    _, summary, costs = find(handle, max_examples=20)
    share = summary["kept"] / 20
    few, expected, many = costs["rows_needed"]
    assert few < 20 / share < many
    assert expected == pytest.approx(20 / share, abs=6)
    stage = costs["stages"]["transform"]
    assert stage["requests"] == [few, many]
    assert stage["input_tokens"] == [7 * few, 7 * many]
    assert stage["dollars"] == pytest.approx([rows * (7 * 1.0 + 3 * 5.0) / 1e6 for rows in (few, many)])
    assert costs["total"]["dollars"] == stage["dollars"]
    _, _, full = transform(READING, ROWS, NO_EVALUATION, handle, PROMPT, parameters(max_examples=20))
    assert few <= full["usage"]["used"] <= many
    assert json.loads(json.dumps(costs)) == costs


def test_rationales_are_estimated_for_the_examples_that_are_expected():
    cells = [{"story": f"Anna has {n} pens and buys two more pens.", "result": str(n)} for n in range(40)]
    rows = retrieved(cells, query_column="story")
    calls = iter(range(99))

    def say(_):
        return (
            '{"example": null}'
            if (n := next(calls)) % 2
            else json.dumps({"example": {"question": f"{n}?", "answer": n}})
        )

    *_, costs = find(cached(Scripted(say)), SUMS, rows)
    low, expected, high = costs["examples"]
    assert 0 < low < expected < high < 40
    assert costs["stages"]["cot"]["requests"] == [3 * low, 3 * high]


@pytest.mark.parametrize(
    ("accepted", "words"),
    [
        (
            "top",
            r"All 60 rows give about 3\d examples.* to about row 3\d: an example takes 1.0 .* nothing was accepted",
        ),
        (
            "all",
            r"takes about 50 of 60 rows \(50 to 60\) for 50 examples\. It pays to go to the end of the ranking\.$",
        ),
        ("none", "Nothing was accepted"),
    ],
)
def test_it_tells_how_deep_it_pays_to_go(accepted, words):
    good = {"all": 60, "top": 30, "none": 0}[accepted]

    def say(request):
        response = asks_for_the_year(request)
        number = int(request.messages[-1].content.split("Again ")[1].split(".")[0]) * 12
        return response if number + int(response[-5:-3]) < good else '{"example": null}'

    *_, costs = find(cached(Scripted(say)), max_examples=50)
    assert re.search(words, " ".join(advise(costs)))
    assert accepted != "none" or (costs["rows_needed"], costs["examples"]) == ([20, 20, 20], [0, 0, 0])


def test_where_rows_are_mapped_too_it_says_that_it_covers_rewriting_alone():
    handle = cached(Scripted(asks_for_the_year), price=PRICE)
    table, _, rewriting = find(handle, max_examples=9)
    before = estimate(READING, ROWS, handle, max_examples=9)
    costs = estimate_full_run(table, before, handle, parameters(max_examples=9).model_copy(update={"mode": "both"}))
    assert "does not send their rows" in advise(costs)[-1]
    assert "does not send" not in " ".join(advise(rewriting))
    low, high = rewriting["stages"]["transform"]["requests"]
    assert 0 < low <= high
    assert costs["stages"]["transform"]["requests"] == [0, high]


def test_fewer_rows_than_wanted_are_one_warning(caplog):
    table, _ = pilot(cached(Scripted(asks_for_the_year)), ROWS.head(5))
    assert list(table["part"]) == ["top", "top", "middle", "middle", "end"]
    assert "5 rows were retrieved, fewer than pilot.rows (20)" in caplog.text


def test_bad_input_is_one_clear_error():
    def no_checks(request):
        return asks_for_the_year(request) if "example" in request.schema["properties"] else ConnectionError("no line")

    teacher = Scripted(lambda _: ConnectionError("no line"))
    with pytest.raises(RebaseError, match=r"pilot: there are no retrieved rows"):
        pilot(cached(teacher), ROWS.head(0))
    with pytest.raises(RebaseError, match=r"answered none of 20 requests.*no line"):
        pilot(cached(teacher))
    with pytest.raises(RebaseError, match=r"nothing usable .*: teacher_failed 20\."):
        pilot(cached(Scripted(no_checks)), consistency_filter=True)
    given = parameters().model_copy(update={"mode": "map"})
    with pytest.raises(RebaseError, match=r"pilot: transform\.mode is map"):
        try_rows(READING, ROWS, NO_EVALUATION, cached(teacher), PROMPT, given, CONTAMINATION, PilotParameters(rows=9))


def test_a_wrong_key_is_one_clear_error():
    with serving(answers="schema") as provider:
        teacher = replace(hosted("anthropic", provider.address), api_key=f"wrong{KEY}")
        with pytest.raises(RebaseError, match=r"(?i)key") as raised:
            pilot(cached(teacher))
    assert KEY not in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 3


def render(task, *findings):
    console = Console(width=80, file=io.StringIO())
    console.print(show_pilot(task, *findings))
    return console.file.getvalue(), write_pilot(task, *findings)


@pytest.mark.parametrize("say", [sometimes, lambda _: '{"example": null}', lambda _: f"{HOSTILE} [bold]"])
def test_terminal_and_page_show_the_findings(say):
    rows = ROWS.assign(row_id=[f"{HOSTILE}{n}" for n in range(len(ROWS))])
    table, summary, costs = find(cached(Scripted(say), price=PRICE), rows=rows)
    text, page = render(READING, table, summary, costs)
    assert ("intervals of the parts overlap" in text) == (say is sometimes)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "<img" not in page
    for shown in (f"{summary['kept']} of 20", "unfit" if summary["rejected"].get("unfit_row") else "invalid"):
        assert shown in text
        assert shown in page
    assert (
        bool(summary["nothing_kept"])
        == (not summary["kept"])
        == ("nothing usable" in page)
        == ("nothing usable" in text)
    )
    assert page.count("<h4>response</h4>") >= 3


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_and_loads_nothing(width, tmp_path):
    findings = find(cached(Scripted(sometimes), price=PRICE))
    file = tmp_path / "pilot.html"
    file.write_text(write_pilot(READING, *findings))
    with open_page(width, 800) as (page, log):
        page.goto(file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert (log.errors, log.requests) == ([], [file.as_uri()])


def test_an_unknown_price_is_said():
    table, summary, costs = find(cached(Scripted(sometimes), price=None))
    text, page = render(READING, table, summary, costs)
    assert "no price" in text
    assert "no price" in page
    assert pd.isna(table["dollars"]).all()
