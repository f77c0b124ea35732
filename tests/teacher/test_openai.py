"""What is particular to the chat completions API."""

import pytest

from rebase.teacher.api import THINKING_TOKENS
from rebase.teacher.openai import OpenAITeacher, request_arguments, without_lengths
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


def test_server_that_counts_no_tokens_is_fine(provider: Provider) -> None:
    body = b'{"choices": [{"message": {"content": "{}"}, "finish_reason": "stop"}]}'
    provider.plan("a", Answer(body=body))
    (response,) = ask(OpenAITeacher(MODEL, KEY, f"{provider.address}/v1"), "a")
    assert (response.text, response.input_tokens, response.output_tokens) == ("{}", 0, 0)


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
    sent = request_arguments(model, OpenAITeacher(model, KEY).family, request("a"))
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
