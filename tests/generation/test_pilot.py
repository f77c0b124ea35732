"""What a pilot's rows tell of a full run."""

import json
import re

import pytest

from rebase.generation.pilot import advise, choose_positions, estimate_full_run
from tests.pipelines.pilots import ROWS, find, sometimes
from tests.pipelines.test_estimate import PRICE, estimate
from tests.pipelines.test_transform import (
    NO_EVALUATION,
    PROMPT,
    READING,
    SUMS,
    asks_for_the_year,
    parameters,
    retrieved,
    transform,
)
from tests.scripted import Scripted, cached


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
