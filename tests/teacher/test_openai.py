"""What is particular to the chat completions API."""

import asyncio
import json
import time
from typing import Any

import pytest

from rebase.errors import RebaseError
from rebase.teacher.api import THINKING_TOKENS
from rebase.teacher.dialects import without_lengths
from rebase.teacher.openai import OpenAITeacher
from rebase.teacher.settings import TeacherSettings
from tests.teacher.server import KEY, MODEL, Answer, Provider
from tests.teacher.test_api import SCHEMA, ask, request


def test_request_holds_the_response_to_the_schema(provider: Provider) -> None:
    ask(OpenAITeacher(MODEL, KEY, f"{provider.address}/v1"), "a")
    (entry,) = provider.asked("a")
    assert entry.path == "/v1/chat/completions"
    assert entry.body == {
        "model": MODEL,
        "messages": [{"role": "system", "content": "Write."}, {"role": "user", "content": "a"}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "response", "strict": True, "schema": SCHEMA},
        },
        "max_tokens": 100,
        "temperature": 0.7,
    }


def test_other_servers_need_no_key(provider: Provider) -> None:
    provider.needs_key = False
    teacher = OpenAITeacher(MODEL, None, f"{provider.address}/v1")
    teacher.check()
    assert [response.finish for response in ask(teacher, "a")] == ["stop"]


def compatible(provider: Provider, **settings: Any) -> OpenAITeacher:
    return OpenAITeacher(MODEL, KEY, f"{provider.address}/v1", **settings)


TEXT = '{"echo": "a"}'


@pytest.mark.parametrize(
    "message",
    [
        {"content": TEXT},
        {"content": None, "reasoning_content": TEXT},
        {"content": "", "reasoning": TEXT},
        {"content": [{"type": "text", "text": TEXT}]},
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "Let me see."}]},
                {"type": "text", "text": TEXT},
            ]
        },
        {"content": [{"type": "output_text", "text": TEXT[:5]}, {"type": "output_text", "text": TEXT[5:]}]},
        {"content": {"echo": "a"}},
        {"content": TEXT, "reasoning_content": "I think."},
    ],
)
def test_answer_is_taken_from_where_it_is(provider: Provider, message: dict[str, Any]) -> None:
    body = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
    provider.plan("a", Answer(body=body))
    (response,) = ask(compatible(provider), "a")
    assert (response.text, response.finish) == (TEXT, "stop")


@pytest.mark.parametrize("usage", [{}, {"usage": None}, {"usage": {"prompt_tokens": None}}])
@pytest.mark.parametrize(
    ("finish", "expected"),
    [
        ({}, "stop"),
        ({"finish_reason": None}, "stop"),
        ({"finish_reason": "eos"}, "stop"),
        ({"finish_reason": "length"}, "length"),
        ({"finish_reason": "max_tokens"}, "length"),
        ({"finish_reason": "model_length"}, "length"),
        ({"finish_reason": "content_filter"}, "refusal"),
    ],
)
def test_other_or_missing_finish_reasons_and_token_counts(
    provider: Provider, usage: dict[str, Any], finish: dict[str, Any], expected: str
) -> None:
    body = {"choices": [{"message": {"content": "{}"}, **finish}], **usage}
    provider.plan("a", Answer(body=json.dumps(body).encode()))
    (response,) = ask(compatible(provider), "a")
    assert (response.text, response.finish) == ("{}", expected)
    assert (response.input_tokens, response.output_tokens) == (0, 0)


def test_thoughts_that_were_cut_off_are_no_answer(provider: Provider) -> None:
    message = {"content": None, "reasoning_content": "I wonder"}
    provider.plan("a", Answer(body=json.dumps({"choices": [{"message": message, "finish_reason": "length"}]}).encode()))
    (response,) = ask(compatible(provider), "a")
    assert response.is_empty


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"error": {"message": "no key", "code": 401}}, 401),
        ({"error": {"message": "no key", "code": "403"}}, 403),
        ({"error": "invalid api key"}, 401),
        ({"error": {"message": "no such model", "code": 404}, "choices": []}, 404),
        ({"object": "error", "message": "no credit", "code": 402}, 402),
    ],
)
def test_error_under_status_200_counts_by_its_code(provider: Provider, error: dict[str, Any], status: int) -> None:
    provider.default = lambda prompt: Answer(body=json.dumps(error).encode())
    with pytest.raises(RebaseError, match=f"returns status {status}: (no|invalid)"):
        ask(compatible(provider), "a")


@pytest.mark.parametrize(
    "error",
    [
        {"error": {"message": "slow down", "code": 429}},
        {"error": {"message": "slow down", "type": "rate_limit_exceeded"}},
        {"error": "The engine is overloaded"},
        {"error": {"message": "oops", "code": "internal_server_error"}},
        {
            "choices": [
                {"message": {"content": ""}, "error": {"message": "upstream", "code": 502}, "finish_reason": "error"}
            ]
        },
    ],
)
def test_passing_error_under_status_200_is_retried_when_it_says(provider: Provider, error: dict[str, Any]) -> None:
    provider.plan("a", Answer(body=json.dumps(error).encode(), headers={"retry-after": "1"}))
    began = time.monotonic()
    (response,) = ask(compatible(provider), "a")
    assert response.text == TEXT
    assert len(provider.asked()) == 2
    assert time.monotonic() - began > 0.9


def test_error_as_a_string_is_a_failure_in_its_words(provider: Provider) -> None:
    provider.plan("a", Answer(status=400, body=b'{"error": "the prompt is strange"}'))
    provider.plan("b", Answer(body=b'{"error": "the prompt is strange"}'))
    provider.plan("c", Answer(status=400, body=b'{"detail": "the prompt is strange"}'))
    failures = ask(compatible(provider), "a", "b", "c")
    assert [failure.reason for failure in failures] == ["status 400: the prompt is strange"] * 3


def test_text_about_an_error_is_no_error(provider: Provider) -> None:
    provider.plan("a", Answer(text='{"error": "the code is 500", "code": 500}'))
    (response,) = ask(compatible(provider), "a")
    assert "500" in response.text


@pytest.mark.parametrize("path", ["", "/", "/api"])
def test_address_without_v1_is_named(provider: Provider, path: str) -> None:
    with pytest.raises(RebaseError) as caught:
        ask(OpenAITeacher(MODEL, KEY, f"{provider.address}{path}"), "a")
    address = f"{provider.address}{path}".rstrip("/")
    assert f"set teacher.base_url to {address}/v1." in str(caught.value)


def test_extra_body_and_headers_are_sent(provider: Provider) -> None:
    teacher = compatible(provider, extra_body={"top_p": 0.5, "temperature": 0.1}, headers={"X-Tenant": "secret tenant"})
    ask(teacher, "a")
    (entry,) = provider.asked()
    assert (entry.body["top_p"], entry.body["temperature"]) == (0.5, 0.1)
    assert entry.headers["x-tenant"] == "secret tenant"
    assert "secret" not in repr(teacher)


def test_values_of_headers_are_not_shown_in_errors(provider: Provider) -> None:
    provider.plan("a", Answer(status=400, message="who is secret tenant?"))
    (failure,) = ask(compatible(provider, headers={"X-Tenant": "secret tenant"}), "a")
    assert failure.reason == "status 400: who is ***?"
    provider.plan("b", Answer(status=400, message="Received=sk-1234567890"))
    (failure,) = ask(compatible(provider, headers={"X-Gateway": "Bearer sk-1234567890"}), "b")
    assert failure.reason == "status 400: Received=***"


def test_address_of_the_environment_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TeacherSettings(provider="openai", model="m")
    assert OpenAITeacher.from_settings(settings, key=None).address == ""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://host/v1")
    teacher = OpenAITeacher.from_settings(settings, key=None)
    assert (teacher.address, teacher.needs_key) == ("http://host/v1", False)


@pytest.mark.parametrize(
    ("model", "temperature", "effort", "limit"),
    [
        ("gpt-4.1-mini", 0.7, None, 100),
        ("gpt-5", None, "minimal", 100 + THINKING_TOKENS),
        ("gpt-5-mini", None, "minimal", 100 + THINKING_TOKENS),
        ("gpt-5.4-mini", 0.7, "none", 100),
        ("gpt-6-luna", 0.7, "none", 100),
        ("gpt-6.1-sol", None, "low", 100 + THINKING_TOKENS),
        ("gpt-6-astra", None, "low", 100 + THINKING_TOKENS),
        ("gpt-5.2-pro", None, None, 100 + THINKING_TOKENS),
        ("o4-mini", None, "low", 100 + THINKING_TOKENS),
    ],
)
def test_models_of_openai_get_what_they_take(
    model: str, temperature: float | None, effort: str | None, limit: int
) -> None:
    teacher = OpenAITeacher(model, KEY)
    teacher.learned.dialect = asyncio.run(teacher.first_dialect(None))
    sent = teacher.body(request("a"))
    assert sent.get("temperature") == temperature
    assert sent.get("reasoning_effort") == effort
    assert sent["max_completion_tokens"] == limit
    assert "max_tokens" not in sent
    assert sent["response_format"]["json_schema"]["schema"]["properties"] == {"echo": {"type": "string"}}


def test_length_bounds_go_but_fields_of_that_name_stay() -> None:
    schema = {
        "type": "object",
        "properties": {
            "maxLength": {"type": "string", "maxLength": 3, "minLength": 1},
            "many": {"type": "array", "items": {"anyOf": [{"type": "string", "minLength": 2}, {"type": "null"}]}},
        },
    }
    assert without_lengths(schema) == {
        "type": "object",
        "properties": {
            "maxLength": {"type": "string"},
            "many": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
        },
    }
