"""A retrieved row becomes an example: its request, and the checks of its response."""

import asyncio
import json

import pytest

from rebase.generation.rows import RowTransformer
from rebase.generation.verification import ProtectedTexts
from tests.pipelines.test_transform import (
    NO_EVALUATION,
    PASSAGES,
    PROMPT,
    READING,
    SUMS,
    TOPIC,
    asks_for_the_year,
    parameters,
    retrieved,
    transform,
)
from tests.scripted import Scripted, cached


def test_a_guided_teacher_writes_questions_only():
    teacher = Scripted(lambda _: '{"question": "In what year was the bell in this tower cast?"}')
    rows = retrieved(passages=[PASSAGES[0], "Nothing to be had from this.", PASSAGES[1]])
    examples, rejected, summary = transform(
        READING, rows, NO_EVALUATION, cached(teacher), PROMPT, parameters(guided=True)
    )
    assert list(examples["answer"]) == ["1600", "1601"]
    assert list(rejected["reason"]) == ["no_cue"]
    assert list(rejected["row_id"]) == ["bells/1"]
    assert len(teacher.requests) == 2
    assert summary["in"] == 3


def test_a_guided_teachers_label_must_be_named_by_the_row():
    cells = [
        {"lead": "The rovers won their match on Sunday.", "section": "Sports pages"},
        {"lead": "The rovers lost their match on Monday.", "section": "Local"},
    ]
    examples, rejected, summary = transform(
        TOPIC,
        retrieved(cells, query_column="lead"),
        NO_EVALUATION,
        cached(Scripted(lambda _: '{"answer": "sport"}')),
        PROMPT,
        parameters(guided=True),
    )
    assert list(examples["query"]) == ["News item: The rovers won their match on Sunday."]
    assert list(rejected["reason"]) == ["label_not_in_row"]
    assert summary["labels"]["counts"] == {"business": 0, "food": 0, "science": 0, "sport": 1, "travel": 0}


def test_an_unguided_teacher_may_choose_any_label():
    response = json.dumps({"example": {"text": "The rovers lost.", "answer": "sport"}})
    examples, _, _ = transform(
        TOPIC,
        retrieved([{"lead": "The rovers lost."}]),
        NO_EVALUATION,
        cached(Scripted(lambda _: response)),
        PROMPT,
        parameters(),
    )
    assert list(examples["answer"]) == ["sport"]


def test_numbers_are_kept_as_the_task_writes_them():
    cells = [{"story": "Two hens lay 3 eggs each. How many eggs is that?", "result": "6"}]
    examples, _, _ = transform(
        SUMS,
        retrieved(cells, query_column="story"),
        NO_EVALUATION,
        cached(Scripted(lambda _: '{"answer": 6.0}')),
        PROMPT,
        parameters(guided=True),
    )
    assert list(examples["answer"]) == ["6"]


def test_the_consistency_filter_rejects_other_answers():
    def say(request):
        if "example" in request.schema["properties"]:
            return asks_for_the_year(request)
        return '{"answer": "1600"}'

    teacher = Scripted(say)
    rows = retrieved(passages=PASSAGES[:3])
    examples, rejected, summary = transform(
        READING, rows, NO_EVALUATION, cached(teacher), PROMPT, parameters(consistency_filter=True)
    )
    assert list(examples["answer"]) == ["1600"]
    assert list(rejected["reason"]) == ["inconsistent"] * 2
    assert list(rejected["detail"]) == ["1600 for 1601", "1600 for 1602"]
    assert summary["usage"]["responses"] == 6


@pytest.mark.parametrize(("guided", "count"), [(False, 3), (True, 2)])
def test_the_request_that_is_estimated_is_the_one_that_is_sent(guided, count):
    rows = retrieved(passages=[PASSAGES[0], "Nothing here.", PASSAGES[1]]).to_dict("records")
    teacher = Scripted(lambda _: "{}")
    transformer = RowTransformer(READING, rows, PROMPT, parameters(guided=guided))

    async def generate():
        async with cached(teacher).open() as session:
            return [await transformer.generate(session, row, ProtectedTexts(READING, [], 13)) for row in rows]

    results = asyncio.run(generate())
    requests = [transformer.request(row) for row in rows]
    assert teacher.requests == [request for request in requests if request]
    assert [result.response is None for result in results] == [request is None for request in requests]
    assert len(teacher.requests) == count
