import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.generation.filters.base import Rejection
from rebase.generation.generate import (
    ExampleStage,
    GenerationResult,
    explain_nothing_kept,
    generate_all,
    read_response,
    rejected_line,
)
from rebase.generation.prompts.parsing import Example
from rebase.records import EXAMPLE_COLUMNS
from rebase.teacher.budget import Usage
from rebase.teacher.protocol import Failure, Response
from tests.shipped import shipped_prompt, shipped_task

TOPIC, PROMPT = shipped_task("news_topic"), shipped_prompt("transform")


class NoTeacher:
    """A teacher that opens and has a limit."""

    provider, model, concurrency, compute_dtype = "no", "teacher", 4, None

    @asynccontextmanager
    async def open(self):
        yield SimpleNamespace(usage=Usage())


def run_stage(outcomes, wanted, concurrency):
    """The kept and rejected lines of items with these outcomes, and the largest number in progress at once."""
    in_progress, most = 0, 0

    async def generate(session, number):
        nonlocal in_progress, most
        in_progress += 1
        most = max(most, in_progress)
        for _ in range(number % 3):
            await asyncio.sleep(0)
        in_progress -= 1
        return GenerationResult({"row_id": number}, Response(f"key {number}", "text", "stop", 2, 1), outcomes[number])

    stage = ExampleStage("test", TOPIC, NoTeacher(), PROMPT)
    stage.generate(range(len(outcomes)), generate, wanted, lambda kept, rejected, usage: concurrency(kept, rejected))
    return stage.kept, stage.rejected, most


OUTCOMES = st.one_of(
    st.integers(0, 9).map(lambda n: Example({"text": f"News {n}!"}, "sport")),
    st.sampled_from([Rejection("bad"), Rejection("worse", "because")]),
)


@given(st.lists(OUTCOMES, max_size=30), st.integers(1, 12), st.integers(1, 9))
def test_each_item_is_kept_or_rejected_in_order_until_there_are_enough(outcomes, wanted, ahead):
    kept, rejected, most = run_stage(outcomes, wanted, lambda kept, rejected: min(ahead, wanted - kept))
    assert most <= min(ahead, wanted)
    seen, expected = set(), []
    for number, outcome in enumerate(outcomes):
        fine = isinstance(outcome, Example) and outcome.fields["text"] not in seen
        seen |= {outcome.fields["text"]} if fine else set()
        expected.append((number, fine))
        if len(seen) == wanted:
            break
    assert [line["row_id"] for line in kept] == [number for number, fine in expected if fine]
    assert [line["row_id"] for line in rejected] == [number for number, fine in expected if not fine]


@given(st.lists(OUTCOMES, max_size=30), st.integers(0, 20), st.integers(1, 9))
def test_it_ends_when_there_is_no_more_room(outcomes, allowed, ahead):
    kept, rejected, _ = run_stage(outcomes, 99, lambda kept, rejected: min(ahead, allowed - kept - rejected))
    assert len(kept) + len(rejected) == min(allowed, len(outcomes))


def test_queries_of_signs_are_no_duplicates():
    outcomes = [Example({"text": signs}, "sport") for signs in ("[ ( [", "{ { <", "[([")]
    kept, rejected, _ = run_stage(outcomes, 9, lambda kept, rejected: 4)
    assert [line["row_id"] for line in kept] == [0, 1]
    assert [line["reason"] for line in rejected] == ["duplicate"]


def test_an_item_without_a_row_has_no_provenance_and_may_have_details():
    async def generate(session, number):
        response = Response("key", "text", "stop", 2, 1, dollars=0.5)
        example = Example({"text": "News."}, "sport")
        return GenerationResult({"row_id": "new"}, response, example, details={"rationale": "So it is."})

    stage = ExampleStage("test", TOPIC, NoTeacher(), PROMPT)
    stage.generate([1], generate, 1, lambda *_: 1)
    (line,) = stage.kept
    assert set(line) == {*EXAMPLE_COLUMNS, "rationale"} - {"teacher", "prompt_hash"}
    assert (line["example_id"], line["dataset"], line["query"]) == ("new", None, "News item: News.")
    assert (line["response_key"], line["input_tokens"], line["dollars"]) == ("key", 2, 0.5)
    examples, rejected, summary = stage.conclude("", not_listed={"over_limit": 2}, style="x")
    assert (len(examples), len(rejected)) == (1, 0)
    assert (summary["in"], summary["rejected"], summary["style"]) == (3, {"over_limit": 2}, "x")
    assert summary["seconds"] >= 0


def test_the_loop_keeps_to_the_limit_of_the_teacher_by_default():
    in_progress, most = 0, 0

    async def generate(session, number):
        nonlocal in_progress, most
        in_progress += 1
        most = max(most, in_progress)
        await asyncio.sleep(0)
        in_progress -= 1
        return number

    results, usage = generate_all(NoTeacher(), range(9), generate, lambda number: number % 2 == 0, stage="x")
    assert (results, most, usage.responses) == (list(range(9)), 4, 0)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (Response("k", "7", "stop", 1, 1), 7),
        (
            Response("k", "seven", "stop", 1, 1),
            Rejection("invalid_response", "invalid literal for int() with base 10: 'seven'"),
        ),
        (Response("k", "7", "length", 1, 1), Rejection("response_cut_off")),
        (Response("k", "7", "refusal", 1, 1), Rejection("teacher_refused")),
        (Failure("k", "no line"), Rejection("teacher_failed", "no line")),
        (Failure("k", "all spent", "budget"), Rejection("budget_reached", "all spent")),
    ],
)
def test_a_response_is_read_or_rejected(response, expected):
    assert read_response(response, int) == expected


def test_a_teacher_that_never_answers_is_quoted_by_its_commonest_words():
    lines = [
        rejected_line({"row_id": n}, Rejection("teacher_failed", words)) for n, words in enumerate(["a", "b", "b"])
    ]

    def explain(lines):
        return explain_nothing_kept("transform", TOPIC, NoTeacher(), lines, "Try again.")

    assert "answered none of 3 requests. The most frequent failure: b\n" in explain(lines)
    answered = rejected_line({"row_id": 4}, Rejection("unfit_row"), Response("k", "null", "stop", 1, 1))
    assert (
        "nothing usable for task 'news_topic': teacher_failed 3, unfit_row 1.\n"
        "For example 4: unfit_row, in the response 'null'\nTry again."
    ) in explain([*lines, answered])
    assert "nothing usable for task 'news_topic': there were no rows.\nTry again." in explain([])
