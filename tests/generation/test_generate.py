import asyncio
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rebase.generation.generate import (
    EXAMPLE_COLUMNS,
    Asked,
    Rejection,
    collect,
    explain_silence,
    read_response,
    rejected_line,
)
from rebase.generation.prompts.parsing import Example
from rebase.records import Task
from rebase.teacher.budget import Usage
from rebase.teacher.protocol import Failure, Response

TASKS = Path(__file__).parents[2] / "data" / "01_raw" / "tasks"
TOPIC = Task.parse(yaml.safe_load((TASKS / "news_topic.yml").read_text()), "news_topic")


def gather(outcomes, wanted, room):
    """What ``collect`` keeps and rejects of items with these outcomes, and how many were worked on at once at most."""
    at_once, most = 0, 0

    async def ask(number):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        for _ in range(number % 3):
            await asyncio.sleep(0)
        at_once -= 1
        return Asked({"row_id": number}, Response(f"key {number}", "said", "stop", 2, 1), outcomes[number])

    kept, rejected = asyncio.run(collect(TOPIC, range(len(outcomes)), ask, room, wanted, Usage(), "test"))
    return kept, rejected, most


OUTCOMES = st.one_of(
    st.integers(0, 9).map(lambda n: Example({"text": f"News {n}!"}, "sport")),
    st.sampled_from([Rejection("bad"), Rejection("worse", "because")]),
)


@given(st.lists(OUTCOMES, max_size=30), st.integers(1, 12), st.integers(1, 9))
def test_each_item_is_kept_or_rejected_in_order_until_there_are_enough(outcomes, wanted, ahead):
    kept, rejected, most = gather(outcomes, wanted, lambda kept, rejected: min(ahead, wanted - kept))
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
    kept, rejected, _ = gather(outcomes, 99, lambda kept, rejected: min(ahead, allowed - kept - rejected))
    assert len(kept) + len(rejected) == min(allowed, len(outcomes))


def test_an_item_without_a_row_has_no_provenance_and_may_have_more():
    async def ask(number):
        response = Response("key", "said", "stop", 2, 1, dollars=0.5)
        return Asked({"row_id": "new"}, response, Example({"text": "News."}, "sport"), more={"rationale": "So it is."})

    kept, _ = asyncio.run(collect(TOPIC, [1], ask, lambda *_: 1, 1, Usage(), "test"))
    (line,) = kept
    assert set(line) == {*EXAMPLE_COLUMNS, "rationale"} - {"teacher", "prompt_hash"}
    assert (line["example_id"], line["dataset"], line["query"]) == ("new", None, "News item: News.")
    assert (line["response_key"], line["input_tokens"], line["dollars"]) == ("key", 2, 0.5)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (Response("k", "7", "stop", 1, 1), 7),
        (
            Response("k", "seven", "stop", 1, 1),
            Rejection("not_as_asked", "invalid literal for int() with base 10: 'seven'"),
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
    assert "answered none of 3 requests. It says: b\n" in explain_silence("transform", "x/y", lines)
    answered = rejected_line({"row_id": 4}, Rejection("unfit_row"), Response("k", "null", "stop", 1, 1))
    assert explain_silence("transform", "x/y", [*lines, answered]) is None
    assert explain_silence("transform", "x/y", []) is None
