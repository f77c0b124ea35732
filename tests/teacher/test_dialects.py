"""What a server does not accept is learned from its errors, once."""

import asyncio
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rebase.errors import RebaseError
from rebase.teacher import batches
from rebase.teacher.batches import Retry
from rebase.teacher.budget import FREE, Budget
from rebase.teacher.cached import CachedTeacher
from rebase.teacher.dialects import Dialect, without_lengths
from rebase.teacher.openai import OpenAITeacher
from rebase.teacher.protocol import Failure
from rebase.teacher.rate_limits import FIRST_CONCURRENCY
from rebase.teacher.settings import BudgetSettings
from tests.scripted import NO_PRICES, generate_all
from tests.teacher.server import KEY, MODEL, Answer, Provider
from tests.teacher.teachers import SCHEMA, echo, hosted, prompts, request, texts_of

Rejects = Callable[[dict[str, Any]], str | None]


def no_schema(body: dict[str, Any]) -> str | None:
    is_schema = body.get("response_format", {}).get("type") == "json_schema"
    return "This response_format type is unavailable now" if is_schema else None


def no_format(body: dict[str, Any]) -> str | None:
    return "Unknown parameter: 'response_format'." if "response_format" in body else None


def no_max_tokens(body: dict[str, Any]) -> str | None:
    words = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    return words if "max_tokens" in body else None


def no_temperature(body: dict[str, Any]) -> str | None:
    words = "Unsupported value: 'temperature' does not support 0.7. Only the default (1) value is supported."
    return words if "temperature" in body else None


def no_system(body: dict[str, Any]) -> str | None:
    return "System role not supported" if any(turn["role"] == "system" for turn in body["messages"]) else None


def no_lengths(body: dict[str, Any]) -> str | None:
    return "Invalid schema: 'maxLength' is not permitted." if "maxLength" in json.dumps(body) else None


def nothing(body: dict[str, Any]) -> str | None:
    """A server of few abilities: it says one at a time."""
    rules = (no_lengths, no_schema, no_format, no_max_tokens, no_temperature, no_system)
    return next((words for rule in rules if (words := rule(body))), None)


def teacher(provider: Provider, **settings: Any) -> OpenAITeacher:
    return OpenAITeacher(MODEL, KEY, f"{provider.address}/v1", **settings)


def bodies(provider: Provider) -> list[dict[str, Any]]:
    return [entry.body for entry in provider.asked() if entry.status == 200]


@pytest.mark.parametrize(
    ("rejects", "lesson", "expected"),
    [
        (
            no_schema,
            "no json_schema; teacher.structured_output is now json_object",
            {"response_format": {"type": "json_object"}},
        ),
        (
            no_max_tokens,
            "no max_tokens; it gets max_completion_tokens",
            {"max_tokens": None, "max_completion_tokens": 100},
        ),
        (no_temperature, "accepts no temperature and samples at its own; 0.7 is ignored", {"temperature": None}),
        (no_lengths, "no bounds on text lengths", {"temperature": 0.7}),
    ],
)
def test_lesson_is_learned_once_and_said_once(
    provider: Provider, caplog: pytest.LogCaptureFixture, rejects: Rejects, lesson: str, expected: dict[str, Any]
) -> None:
    provider.rejects = rejects
    one = teacher(provider)
    for _ in range(2):  # the next session, of another stage, has learned it too
        assert texts_of(generate_all(one, map(request, prompts(40)))) == list(map(echo, prompts(40)))
    rejections = [entry for entry in provider.asked() if entry.status == 400]
    assert 1 <= len(rejections) <= FIRST_CONCURRENCY
    assert [lesson in record.message for record in caplog.records].count(True) == 1
    for body in bodies(provider):
        assert {name: body.get(name) for name in expected} == expected


def test_without_a_system_role_the_first_message_begins_with_that_text(provider: Provider) -> None:
    provider.rejects = no_system
    generate_all(teacher(provider), [request("a")])
    (body,) = bodies(provider)
    assert body["messages"] == [{"role": "user", "content": "Write.\n\na"}]


def test_without_any_format_the_schema_is_in_the_prompt(provider: Provider) -> None:
    provider.rejects = nothing
    (response,) = generate_all(teacher(provider), [request("a")])
    assert json.loads(response.text).keys() == {"echo"}
    (body,) = bodies(provider)
    (message,) = body["messages"]
    schema = json.dumps(without_lengths(SCHEMA))
    words = f"Write.\n\nReply with nothing but JSON that is valid for this schema:\n{schema}\n\na"
    assert message == {"role": "user", "content": words}
    assert body.keys() == {"model", "messages", "max_completion_tokens"}


def test_key_of_a_response_is_that_of_the_request_as_it_was_meant(provider: Provider) -> None:
    one = teacher(provider)
    key = one.key(request("a"))
    provider.rejects = no_schema
    (response,) = generate_all(one, [request("a")])
    assert response.key == key


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
@pytest.mark.parametrize("structure", ["json_object", "prompt"])
def test_setting_decides_the_structure_from_the_first_request_on(provider: Provider, kind: str, structure: str) -> None:
    address = provider.address if kind == "anthropic" else f"{provider.address}/v1"
    one = type(hosted(kind, ""))(MODEL, KEY, address, structured_output=structure)
    assert texts_of(generate_all(one, [request("a")])) == [echo("a")]
    (entry,) = provider.asked()
    assert "json_schema" not in json.dumps(entry.body)
    assert "valid for this schema" in json.dumps(entry.body)
    expected = {"type": "json_object"} if (kind, structure) == ("openai", "json_object") else None
    assert entry.body.get("response_format") == expected


def test_server_that_imitates_the_messages_api_may_know_no_output_config(provider: Provider) -> None:
    provider.rejects = lambda body: "output_config: Extra inputs are not permitted" if "output_config" in body else None
    assert texts_of(generate_all(hosted("anthropic", provider.address), [request("a")])) == [echo("a")]
    (body,) = bodies(provider)
    assert body["system"].startswith("Write.\n\nReply with nothing but JSON")


def test_setting_is_not_changed_by_errors(provider: Provider) -> None:
    provider.rejects = no_schema
    (failure,) = generate_all(teacher(provider, structured_output="json_schema"), [request("a")])
    assert isinstance(failure, Failure)
    assert "response_format type is unavailable" in failure.reason
    assert "teacher.structured_output" in failure.reason


def test_server_that_contradicts_itself_is_not_asked_forever(provider: Provider) -> None:
    provider.rejects = lambda body: (
        f"unsupported parameter {'max_tokens' if 'max_tokens' in body else 'max_completion_tokens'}"
    )
    (failure,) = generate_all(teacher(provider), [request("a")])
    assert isinstance(failure, Failure)
    assert len(provider.asked()) <= 10


@pytest.mark.parametrize(
    "words",
    [
        "max_tokens is too large: 100. The model supports at most 64 completion tokens.",
        "temperature must be between 0 and 0.5",
        "the prompt is too long",
        "schema is too complex",
        "content filter: system prompt leaked",
    ],
)
def test_other_errors_teach_nothing(words: str) -> None:
    assert Dialect().adapt(words, may_change_structure=True) is None


@pytest.mark.parametrize(
    ("words", "change"),
    [
        (
            "[{'loc': ('body', 'response_format'), 'msg': 'Extra inputs are not permitted'}]",
            {"structure": "json_object"},
        ),
        ("'response_format.type' must be 'json_schema' or 'text'", {"structure": "json_object"}),
        (
            "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.",
            {"structure": "json_object"},
        ),
        ("output_config: Extra inputs are not permitted", {"structure": "json_object"}),
        ("Unsupported value: 'messages[0].role' does not support 'system' with this model.", {"system": False}),
        ("Developer instruction is not enabled for models/gemma-3-27b-it", {"system": False}),
        ("Conversation roles must alternate user/assistant/user/assistant/...", {"system": False}),
        ("Unrecognized request argument supplied: temperature", {"temperature": False}),
        ("unknown field `max_tokens`", {"limit": "max_completion_tokens"}),
        ("Unsupported parameter: 'reasoning_effort' is not supported with this model.", {"arguments": {}}),
    ],
)
def test_words_of_many_servers(words: str, change: dict[str, Any]) -> None:
    adapted = Dialect(arguments={"reasoning_effort": "low"}).adapt(words, may_change_structure=True)
    assert adapted is not None
    assert {name: getattr(adapted[0], name) for name in change} == change


def test_threads_share_what_is_learned(provider: Provider) -> None:
    provider.rejects = nothing
    one = teacher(provider)
    generate_all(one, [request("first")])
    before = len(provider.asked())
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda number: generate_all(one, [request(f"{number}")]), range(4)))
    assert all(not isinstance(outcome, Failure) for (outcome,) in done)
    assert len(provider.asked()) == before + 4


# Batches


def batched(provider: Provider, path: Path, **settings: Any) -> CachedTeacher:
    return CachedTeacher(teacher(provider, **settings), path, Budget(BudgetSettings(), FREE), NO_PRICES, batch=True)


def test_batches_learn_from_failed_lines(
    provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(batches, "FIRST_POLL", 0.02)
    provider.batch_seconds, provider.rejects, provider.bare_errors = 0.05, nothing, True
    with caplog.at_level(logging.WARNING):
        answers = generate_all(batched(provider, tmp_path / "r.sqlite"), map(request, prompts(5)))
    assert all(json.loads(answer.text).keys() == {"echo"} for answer in answers)
    assert len(provider.billed()) == 5
    assert caplog.text.count("the server accepts no") == 5  # and the temperature


def test_failed_line_of_a_batch_without_a_body_fails_in_its_words_and_the_others_count(
    provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "FIRST_POLL", 0.02)
    provider.batch_seconds, provider.bare_errors = 0.05, True
    provider.plan("prompt 0", Answer(status=400, message="prompt is too long"))
    failure, *others = generate_all(batched(provider, tmp_path / "r.sqlite"), map(request, prompts(4)))
    assert failure.reason == "status 400: prompt is too long"
    assert texts_of(others) == list(map(echo, prompts(4)))[1:]


def test_batch_waits_for_a_full_queue(
    provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(batches, "FIRST_POLL", 0.02)
    provider.batch_seconds, provider.full_queue = 0.05, 5
    with caplog.at_level(logging.INFO):
        answers = generate_all(batched(provider, tmp_path / "r.sqlite"), map(request, prompts(4)))
    assert texts_of(answers) == list(map(echo, prompts(4)))
    assert caplog.text.count("batch queue is full (token_limit_exceeded Enqueued token limit reached") == 5


def test_other_failure_of_a_whole_batch_is_an_error(
    provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "FIRST_POLL", 0.02)
    wrong = OpenAITeacher("no-model", KEY, f"{provider.address}/v1")
    one = CachedTeacher(wrong, tmp_path / "r.sqlite", Budget(BudgetSettings(), FREE), NO_PRICES, batch=True)
    with pytest.raises(RebaseError, match=r"failed: model_not_found line 1"):
        generate_all(one, [request("a")])


def test_the_first_dialect_is_by_name_also_behind_a_gateway() -> None:
    def first(model: str, address: str | None) -> Dialect:
        return asyncio.run(OpenAITeacher(model, KEY, address).first_dialect(None))

    assert first("gpt-5-mini", "http://gateway/v1") == first("gpt-5-mini", None)
    assert first("openai/gpt-5-mini", "http://gateway/v1") == first("gpt-5-mini", None)
    assert first("gpt-oss-20b", "http://gateway/v1") == Dialect()
    assert first("gpt-4.1", None) != first("gpt-4.1", "http://gateway/v1") == Dialect()


@pytest.mark.parametrize(
    ("item", "outcome"),
    [
        ({"response": None, "error": "it was cancelled"}, Retry("it was cancelled")),
        ({"response": None, "error": {"code": "batch_expired", "message": "it expired"}}, Retry("it expired")),
        ({}, Retry("no response")),
        ({"response": "odd"}, Retry("no response")),
        ({"response": {"status_code": 503, "body": "busy"}}, Retry("busy")),
        ({"response": {"status_code": "400", "body": {"error": "too long"}}}, Failure("k", "status 400: too long")),
        ({"response": {"status_code": 400}, "error": {"message": "too long"}}, Failure("k", "status 400: too long")),
        ({"response": {"status_code": 200, "body": {"choices": []}}}, Failure("k", "not a response: {'choices': []}")),
        ({"response": {"status_code": 200}}, Failure("k", "status 200: no response")),
    ],
)
def test_odd_lines_of_a_batch_concern_their_item_only(item: dict[str, Any], outcome: Failure | Retry) -> None:
    assert OpenAITeacher(MODEL, KEY).batches(None)._read_item("k", item) == outcome
