"""Settings that are shown or published have no secrets."""

from typing import Any

import pytest

from rebase.reporting.redaction import public
from rebase.teacher.settings import TeacherSettings

KEY = "sk-" + "x" * 24


@pytest.mark.parametrize(
    "name", ["key", "api_key", "apikey", "openai.api_key", "password", "HF_TOKEN", "headers", "authorization"]
)
def test_values_with_names_of_secrets_are_removed(name: str) -> None:
    assert public({name: KEY, "group": {name: {"x-api-key": KEY}}}) == {"group": {}}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (f"pass {KEY} on", "pass (a key) on"),
        ("hf_" + "x" * 24, "(a key)"),
        ("https://me:secret@host/v1?key=x", "https://host/v1"),
        ("hf://owner/name@main", "hf://owner/name@main"),
        ("Why? Because.", "Why? Because."),
        ("max_tokens", "max_tokens"),
    ],
)
def test_keys_and_logins_in_texts_are_removed(value: str, shown: str) -> None:
    assert public([value, (value,)]) == [shown, [shown]]


def test_other_values_stay_as_they_are() -> None:
    settings: dict[str, Any] = {"max_tokens": 5, "batch": False, "timeout": 1.5, "revision": None, "names": ["a"]}
    assert public(settings) == settings


def test_the_settings_of_a_teacher_become_json_values() -> None:
    settings = TeacherSettings(provider="openai", model="m", headers={"x-api-key": KEY}, extra_body={"token": KEY})
    assert KEY not in str(public(settings))
    assert public(settings)["model"] == "m"
