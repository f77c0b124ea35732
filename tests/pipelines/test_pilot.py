import json
from dataclasses import replace

import pytest

from rebase.errors import RebaseError
from rebase.parameters import PilotParameters
from rebase.pipelines.pilot.nodes import try_rows
from rebase.records import PILOT_COLUMNS
from tests.pipelines.pilots import ROWS, pilot, sometimes
from tests.pipelines.test_estimate import PRICE
from tests.pipelines.test_transform import (
    CONTAMINATION,
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
from tests.teacher.server import KEY, serving
from tests.teacher.teachers import hosted


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
