"""Reading the JSON in a response, however a server wraps it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.teacher.protocol import Response, parse_response

VALUE = {"echo": 'a {b} "c"'}
ANSWER = json.dumps(VALUE)


@pytest.mark.parametrize(
    "text",
    [
        ANSWER,
        f"\n {ANSWER}\n",
        f"```json\n{ANSWER}\n```",
        f"```\n{ANSWER}\n```\n",
        f"Here it is:\n```json\n{ANSWER}\n```\nI hope that {{helps}}.",
        f"<think>\nThe row has a {{passage}}, such as {{}}.\n</think>\n\n{ANSWER}",
        f"<think>one</think> Sure! {ANSWER}",
        f"no opening tag</think>{ANSWER}",
        f'{{"echo": "a draft"}}\nBetter:\n{ANSWER}',
        f"{ANSWER}\nExplanation: it is short.",
    ],
)
def test_json_is_found_among_other_words(text: str) -> None:
    assert parse_response(text) == VALUE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("no json", "Expecting value"),
        ("<think>only thoughts", "Expecting value"),
        ('{"example": {"question": "q", "answer": "a"}', "Expecting ','"),
        ('{"echo": ', "Expecting value"),
        ("[" * 100_000, "nested"),
        ("1" * 10_000, "digits"),
    ],
)
def test_text_without_json_is_an_error(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_response(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_plain_json_is_read_as_json(value: object) -> None:
    assert parse_response(json.dumps(value)) == value
    assert parse_response(json.dumps(value, ensure_ascii=False)) == value


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_no_text_is_a_traceback(text: str) -> None:
    try:
        parse_response(text + '{"a": ')
    except ValueError:
        return


def test_half_a_surrogate_pair_becomes_text_that_can_be_written() -> None:
    assert parse_response(r'{"echo": "cut \ud83d"}') == {"echo": "cut \ufffd"}


def test_refusal_without_words_is_not_empty() -> None:
    assert Response("", " ", "stop", 1, 1).is_empty
    assert Response("", "", "length", 1, 1).is_empty
    assert not Response("", "", "refusal", 1, 1).is_empty
    assert not Response("", "{", "length", 1, 1).is_empty
