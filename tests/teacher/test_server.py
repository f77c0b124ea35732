"""The loopback provider is what the real SDKs expect, and it does what it says."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import anthropic
import jsonschema
import openai
import pytest
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming

from tests.teacher.schemas import example
from tests.teacher.server import ALL, EARLY, KEY, MODEL, Answer, Faults, Limits, Provider

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "example": {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {
                        "question": {"type": "string", "maxLength": 60},
                        "label": {"type": "string", "enum": ["yes", "no"]},
                        "answer": {"type": "number"},
                    },
                    "required": ["question", "label", "answer"],
                    "additionalProperties": False,
                },
                {"type": "null"},
            ]
        }
    },
    "required": ["example"],
    "additionalProperties": False,
}
LEAD = r"^(What|How many|In which year) [^?\"\\\[\]\n]+\?$"


@pytest.fixture
def claude(provider: Provider) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(api_key=KEY, base_url=provider.address, max_retries=0, timeout=5) as client:
        yield client


@pytest.fixture
def gpt(provider: Provider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=KEY, base_url=f"{provider.address}/v1", max_retries=0, timeout=5) as client:
        yield client


def params(prompt: str, **changes: Any) -> MessageCreateParamsNonStreaming:
    """What the Messages API is asked."""
    asked: Any = {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": prompt}]}
    return asked | changes


def form(schema: dict[str, Any] = SCHEMA) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "response", "strict": True, "schema": schema}}


def chat(prompt: str, **changes: Any) -> dict[str, Any]:
    """What the chat completions API is asked."""
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}], **changes}


@pytest.fixture(params=["anthropic", "openai"])
def ask(request: pytest.FixtureRequest, claude: anthropic.Anthropic, gpt: openai.OpenAI) -> Callable[[str], Any]:
    """Asks one prompt of one of the APIs, and gives the raw response, whose parse() is the SDK's."""
    if request.param == "anthropic":
        return lambda prompt: claude.messages.with_raw_response.create(**params(prompt))
    return lambda prompt: gpt.chat.completions.with_raw_response.create(**chat(prompt))


def status_of(call: Callable[[], Any]) -> int:
    """The status that a call ends with."""
    try:
        call()
    except (anthropic.APIStatusError, openai.APIStatusError) as error:
        return error.status_code
    return 200


# Conversations


def test_message(provider: Provider, claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(**params("a", system="Write."))
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[-1].text == '{"echo": "a"}'
    assert message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (10, 2)
    assert message._request_id.startswith("req_")


def test_completion(provider: Provider, gpt: openai.OpenAI) -> None:
    completion = gpt.chat.completions.create(**chat("a"))
    assert completion.choices[0].message.content == '{"echo": "a"}'
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (12, 5)


def test_key_and_model_are_checked_at_both_apis(provider: Provider, claude: anthropic.Anthropic, gpt) -> None:
    assert status_of(lambda: claude.with_options(api_key="sk-other").messages.create(**params("a"))) == 401
    assert status_of(gpt.with_options(api_key="sk-other").batches.list) == 401
    assert status_of(lambda: claude.messages.create(**params("a", model="other"))) == 404
    assert status_of(lambda: gpt.chat.completions.create(**chat("a", model="other"))) == 404
    assert status_of(lambda: claude.messages.batches.retrieve("msgbatch_none")) == 404
    with pytest.raises(anthropic.BadRequestError, match="not a request"):
        claude.messages.create(model=MODEL, max_tokens=1, messages=[])
    assert not provider.billed()


# Limits


def test_limits_reject_with_headers_and_refill(provider: Provider, ask: Callable[[str], Any]) -> None:
    provider.limits = Limits(requests=120, burst_seconds=2.5)  # five at once, then one each half second
    responses = [ask(str(number)) for number in range(5)]
    with pytest.raises((anthropic.RateLimitError, openai.RateLimitError)) as caught:
        ask("one too many")
    assert caught.value.response.headers["retry-after"] == "1"
    assert "retry-after-ms" not in caught.value.response.headers
    assert [entry.status for entry in provider.ledger] == [200] * 5 + [429]
    assert len(provider.billed()) == 5
    time.sleep(0.6)
    headers = ask("later").headers
    if "anthropic-ratelimit-requests-limit" in headers:
        assert headers["anthropic-ratelimit-requests-limit"] == "120"
        assert int(responses[0].headers["anthropic-ratelimit-requests-remaining"]) == 4
        assert datetime.fromisoformat(headers["anthropic-ratelimit-requests-reset"]).tzinfo
    else:
        assert headers["x-ratelimit-limit-requests"] == "120"
        assert int(responses[0].headers["x-ratelimit-remaining-requests"]) == 4
        assert re.fullmatch(r"[\d.]+m?s", headers["x-ratelimit-reset-requests"])


# Faults


@pytest.mark.parametrize("fault", ALL)
def test_each_fault_shows_as_what_it_says(provider: Provider, ask: Callable[[str], Any], fault: str) -> None:
    provider.faults = Faults(1.0, kinds=(fault,), hang_seconds=0.05)
    provider.answers = "schema"
    errors = (anthropic.APIError, openai.APIError, json.JSONDecodeError)
    message = caught = None
    try:
        message = ask("a prompt that is answered").parse()
    except errors as error:
        caught = error

    (entry,) = provider.ledger
    assert entry.fault == fault
    assert entry.billed == (fault not in EARLY)
    assert entry.status == EARLY.get(fault, 200)
    if EARLY.get(fault):
        assert caught.status_code == EARLY[fault]
        assert ("retry-after" in caught.response.headers) == (fault == "429")
    elif fault in ("reset", "hang", "half a body"):
        assert isinstance(caught, (anthropic.APIConnectionError, openai.APIConnectionError))
    elif fault == "not JSON":
        assert caught or isinstance(message, str)
    else:
        is_claude = isinstance(message, anthropic.types.Message)
        finish = message.stop_reason if is_claude else message.choices[0].finish_reason
        refused = message.stop_reason == "refusal" if is_claude else message.choices[0].message.refusal is not None
        assert refused == (fault == "refusal")
        assert (finish in ("max_tokens", "length")) == (fault == "cut")


# What is written


def test_responses_fit_the_schema_and_differ_by_prompt(
    provider: Provider, claude: anthropic.Anthropic, gpt: openai.OpenAI
) -> None:
    provider.answers = "schema"
    texts = {}
    for prompt in ("a", "b"):
        config: Any = {"format": {"type": "json_schema", "schema": anthropic.transform_schema(SCHEMA)}}
        message = claude.messages.create(**params(prompt, output_config=config))
        completion = gpt.chat.completions.create(**chat(prompt, response_format=form()))
        texts[prompt] = message.content[-1].text
        for text in (texts[prompt], completion.choices[0].message.content):
            jsonschema.validate(json.loads(text), SCHEMA)
        assert completion.usage.completion_tokens == len(completion.choices[0].message.content) // 4
        assert claude.messages.create(**params(prompt, output_config=config)).content[-1].text == texts[prompt]
    assert texts["a"] != texts["b"]


@pytest.mark.parametrize(
    "schema",
    [
        SCHEMA,
        {"type": "string", "pattern": LEAD},
        {"type": "string", "pattern": r"^[A-Z]{3}-\d{2,4}$"},
        {"type": "string", "minLength": 300},
        {"type": "string", "maxLength": 3},
        {"type": "integer", "minimum": 5, "maximum": 7},
        {"type": "array", "items": {"type": "boolean"}, "minItems": 2},
        {"type": ["string", "null"]},
        {"$ref": "#/$defs/Thing", "$defs": {"Thing": {"type": "object", "properties": {"a": {"const": 3}}}}},
    ],
)
@pytest.mark.parametrize("seed", ["a", "b", "c"])
def test_examples_fit_their_schemas(schema: dict[str, Any], seed: str) -> None:
    value = example(schema, seed)
    jsonschema.validate(value, schema)
    if schema.get("pattern"):
        # Anthropic's SDK tells of the pattern in words: the server reads them, as a model does.
        assert re.fullmatch(schema["pattern"], example(anthropic.transform_schema(schema), seed))


# Bills


def test_ledger_shows_what_was_billed_twice(provider: Provider, claude: anthropic.Anthropic, gpt) -> None:
    provider.plan("a", Answer(status=529), Answer(), Answer())
    provider.plan("b", Answer(text="No.", finish="refusal"))
    assert [status_of(lambda: claude.messages.create(**params("a"))) for _ in range(3)] == [529, 200, 200]
    claude.messages.create(**params("b"))
    claude.messages.create(**params("a", system="Other."))
    times = Counter(entry.request_id for entry in provider.billed())
    assert sorted(times.values()) == [1, 1, 2]
    assert {(entry.input_tokens, entry.output_tokens) for entry in provider.billed()} == {(12, 5)}


# Batches


def batch_of(claude: anthropic.Anthropic, count: int = 40, **changes: Any) -> Any:
    requests: Any = [{"custom_id": f"r{number}", "params": params(f"p{number}", **changes)} for number in range(count)]
    return claude.messages.batches.create(requests=requests)


def ended(retrieve: Callable[[str], Any], batch: Any) -> Any:
    """The batch when it is over."""
    over = ("ended", "completed", "expired", "cancelled", "failed")
    while getattr(batch, "processing_status", None) not in over and getattr(batch, "status", None) not in over:
        time.sleep(0.02)
        batch = retrieve(batch.id)
    return batch


def test_message_batch_from_end_to_end(provider: Provider, claude: anthropic.Anthropic) -> None:
    batch = batch_of(claude)
    assert (batch.processing_status, batch.request_counts.processing) == ("in_progress", 40)
    with pytest.raises(anthropic.AnthropicError, match="No `results_url`"):
        claude.messages.batches.results(batch.id)
    batch = ended(claude.messages.batches.retrieve, batch)
    assert (batch.request_counts.succeeded, batch.request_counts.processing) == (40, 0)
    assert batch.ended_at >= batch.created_at
    results = list(claude.messages.batches.results(batch.id))
    names = [result.custom_id for result in results]
    assert names != sorted(names, key=lambda name: int(name[1:]))
    texts = {result.custom_id: result.result.message.content[-1].text for result in results}
    assert texts == {f"r{number}": json.dumps({"echo": f"p{number}"}) for number in range(40)}
    assert {(entry.batch, entry.path) for entry in provider.billed()} == {(batch.id, "/v1/messages")}
    # The same conversation has the same identity outside of a batch.
    claude.messages.create(**params("p0"))
    assert sorted(Counter(entry.request_id for entry in provider.billed()).values())[-2:] == [1, 2]


def upload(gpt: openai.OpenAI, lines: list[dict[str, Any]]) -> openai.types.FileObject:
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    return gpt.files.create(file=("requests.jsonl", content), purpose="batch")


def lines_of(count: int = 40) -> list[dict[str, Any]]:
    where = {"method": "POST", "url": "/v1/chat/completions"}
    return [{"custom_id": f"r{number}", **where, "body": chat(f"p{number}")} for number in range(count)]


def start(gpt: openai.OpenAI, file: str, **metadata: str) -> openai.types.Batch:
    return gpt.batches.create(
        input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h", metadata=metadata
    )


def read(gpt: openai.OpenAI, file: str | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gpt.files.content(file).text.splitlines()] if file else []


def test_openai_batch_from_end_to_end(provider: Provider, gpt: openai.OpenAI) -> None:
    file = upload(gpt, lines_of())
    assert (file.purpose, file.filename) == ("batch", "requests.jsonl")
    assert read(gpt, file.id) == lines_of()
    batch = start(gpt, file.id, run="one")
    assert (batch.status, batch.metadata) == ("in_progress", {"run": "one"})
    batch = ended(gpt.batches.retrieve, batch)
    assert (batch.status, batch.request_counts.completed, batch.error_file_id) == ("completed", 40, None)
    assert batch.completed_at
    assert batch.usage.input_tokens == 40 * 12
    results = read(gpt, batch.output_file_id)
    assert {line["response"]["status_code"] for line in results} == {200}
    completions = {
        line["custom_id"]: openai.types.chat.ChatCompletion.model_validate(line["response"]["body"]) for line in results
    }
    assert list(completions) != [f"r{number}" for number in range(40)]
    assert completions["r7"].choices[0].message.content == '{"echo": "p7"}'
    assert len(provider.billed()) == 40


def test_batch_with_a_lost_response_exists(provider: Provider, gpt: openai.OpenAI) -> None:
    provider.faults = Faults(batch_lost=1.0)
    file = upload(gpt, lines_of(1)).id
    with pytest.raises(openai.APIConnectionError):
        start(gpt, file, run="one")
    assert [batch.metadata for batch in gpt.batches.list()] == [{"run": "one"}]


# On its own
