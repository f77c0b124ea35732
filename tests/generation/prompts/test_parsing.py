import json

import pytest

from rebase.generation.prompts.parsing import (
    Example,
    read_check,
    read_denser,
    read_example,
    read_rationale,
    read_synthesized,
)
from tests.generation.prompts.samples import READING, SUMS, TOPIC


def test_an_example_is_read_with_the_passage_word_for_word():
    response = json.dumps({"example": {"question": "Who? ", "answer": " him"}})
    assert read_example(READING, response, "It was  him.") == Example(
        {"context": "It was  him.", "question": "Who?"}, "him"
    )


def test_an_unfit_row_is_none():
    assert read_example(READING, '{"example": null}', "x") is None


@pytest.mark.parametrize(
    "response", ["", "{", "[]", '"x"', "7", '{"example": {}}', '{"example": {"question": "Who?"}}']
)
def test_a_response_of_another_shape_is_an_error(response):
    with pytest.raises(ValueError, match=r"."):
        read_example(READING, response, "x")


@pytest.mark.parametrize(("number", "text"), [("3", "3"), ("3.0", "3"), ("2.5", "2.5"), ("-4", "-4")])
def test_numbers_are_read_as_they_are_written(number, text):
    response = f'{{"example": {{"question": "How many?", "answer": {number}}}}}'
    assert read_example(SUMS, response, None).answer == text


def test_a_rationale_is_read_with_its_answer():
    assert read_rationale('{"rationale": " 2 + 2 = 4 ", "answer": 4}') == ("2 + 2 = 4", "4")
    with pytest.raises(ValueError, match="expected a response"):
        read_rationale('{"rationale": "x"}')


@pytest.mark.parametrize(
    "response", ["", "7", "[]", "null", '{"answer": "x", "why": "y"}', '{"example": {"answer": "x"}}']
)
def test_a_check_of_another_shape_is_an_error(response):
    with pytest.raises(ValueError, match=r"."):
        read_check(TOPIC, {"text": "x"}, response)


@pytest.mark.parametrize("value", [None, [], ["x"], {"a": 1}])
def test_a_value_that_is_no_text_or_number_is_an_error(value):
    for fields in ({"question": value, "answer": "him"}, {"question": "Who?", "answer": value}):
        with pytest.raises(ValueError, match="expected a text or a number"):
            read_example(READING, json.dumps({"example": fields}), "It was him.")
        with pytest.raises(ValueError, match="expected a text or a number"):
            read_synthesized(SUMS, json.dumps(fields))
    for name, read in (("rationale", read_rationale), ("missing", lambda text: read_denser(SUMS, {}, text))):
        for fields in ({name: value, "answer": "4"}, {name: "x", "answer": value}):
            with pytest.raises(ValueError, match="expected a text or a number"):
                read(json.dumps(fields))
    with pytest.raises(ValueError, match="expected a text or a number"):
        read_check(TOPIC, {"text": "x"}, json.dumps({"answer": value}))
