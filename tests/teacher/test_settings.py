"""The settings of a teacher, and the part of a response's key that names the server."""

from typing import Any

import pytest

from rebase.errors import RebaseError
from rebase.records import validated
from rebase.teacher.settings import TeacherSettings, server_address


@pytest.mark.parametrize(
    ("base_url", "address"),
    [
        (None, ""),
        ("https://api.openai.com/v1", ""),
        ("https://api.anthropic.com/", ""),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("https://me:secret@host/v1?key=x", "https://host/v1"),
    ],
)
def test_the_address_has_no_login_and_no_query(base_url: str | None, address: str) -> None:
    assert server_address(base_url, {}) == address


def test_fields_of_the_body_are_part_of_the_address() -> None:
    first, again, other = (
        server_address("http://host/v1", body) for body in ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2})
    )
    assert first == again != other
    assert first.startswith("http://host/v1#")
    assert server_address(None, {"a": 1}).startswith("#")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"time_out": 5}, r"time_out is unknown\. Did you mean timeout\?"),
        ({"base_url": "localhost:8000"}, "base_url: "),
        ({"extra_body": {"messages": []}}, "extra_body: it cannot set messages: remove that"),
        ({"headers": {"X Key": "k"}}, "headers"),
        ({"on_budget": "ignore"}, r"on_budget: .*'continue' or 'stop', not 'ignore'"),
    ],
)
def test_a_wrong_setting_is_one_message(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RebaseError, match=words):
        validated(TeacherSettings, {"provider": "openai", "model": "m", **changes}, "teacher is wrong:")
