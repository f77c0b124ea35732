"""What is particular to the Messages API."""

import logging
from typing import Any

import pytest

from rebase.errors import RebaseError
from rebase.teacher.anthropic import AnthropicTeacher, model_dialect
from rebase.teacher.api import THINKING_TOKENS
from tests.scripted import generate_all
from tests.teacher.server import KEY, MODEL, Provider
from tests.teacher.test_api import ask, request


def capabilities(disabled: bool, between_tools: bool = False, thinking: bool = True, schema: bool = True) -> dict:
    """As the Models API lists them."""
    kinds = {"disabled": disabled, "between_tools": between_tools, "adaptive": True, "enabled": False}
    return {
        "structured_outputs": {"supported": schema},
        "effort": {"supported": True, "low": {"supported": True}},
        "thinking": {
            "supported": thinking,
            "types": {name: {"supported": supported} for name, supported in kinds.items()},
        },
    }


def body(provider: Provider) -> dict[str, Any]:
    (entry,) = provider.asked("a")
    return entry.body


def test_request_holds_the_response_to_the_schema(provider: Provider) -> None:
    ask(AnthropicTeacher(MODEL, KEY, provider.address), "a")
    sent = body(provider)
    assert sent["output_config"]["format"]["type"] == "json_schema"
    schema = sent["output_config"]["format"]["schema"]
    assert (schema["required"], schema["additionalProperties"]) == (["echo"], False)
    # The API takes no length bounds: the SDK turns them into words.
    assert "maxLength" not in schema["properties"]["echo"]
    assert "maxLength: 40" in schema["properties"]["echo"]["description"]
    assert sent["system"] == "Write."
    assert sent["messages"] == [{"role": "user", "content": "a"}]
    assert sent["max_tokens"] == 100
    assert "thinking" not in sent


def test_temperature_is_left_out_with_one_warning(provider: Provider, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ask(AnthropicTeacher(MODEL, KEY, provider.address), "a", "b", "c")
    assert all("temperature" not in entry.body for entry in provider.asked())
    assert len([record for record in caplog.records if "accepts no temperature" in record.message]) == 1


def test_no_system_prompt_is_left_out(provider: Provider) -> None:
    generate_all(AnthropicTeacher(MODEL, KEY, provider.address), [request("a", system="")])
    assert "system" not in body(provider)


@pytest.mark.parametrize(
    ("able", "thinking", "effort", "max_tokens"),
    [
        (capabilities(disabled=True), {"type": "disabled"}, None, 100),
        (capabilities(disabled=False, between_tools=True), {"type": "between_tools"}, None, 100),
        (capabilities(disabled=False), None, "low", 100 + THINKING_TOKENS),
        (capabilities(disabled=False, thinking=False), None, None, 100),
        ({"a server": "of another mind"}, None, None, 100),
    ],
    ids=["can be off", "off but between tools", "always thinks", "never thinks", "unknown"],
)
def test_reasoning_is_turned_off_as_far_as_possible(
    provider: Provider, able: dict, thinking: dict | None, effort: str | None, max_tokens: int
) -> None:
    provider.capabilities = able
    ask(AnthropicTeacher(MODEL, KEY, provider.address), "a")
    sent = body(provider)
    assert sent.get("thinking") == thinking
    assert sent["output_config"].get("effort") == effort
    assert sent["max_tokens"] == max_tokens


def test_model_without_json_schemas_is_an_error() -> None:
    with pytest.raises(RebaseError, match="JSON schema"):
        model_dialect("old-model", capabilities(disabled=True, schema=False), "json_schema")
