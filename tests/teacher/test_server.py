"""The loopback provider is what the real SDKs expect, and it does what it says."""

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import anthropic
import jsonschema
import openai
import pytest
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming

from tests.teacher.schemas import example
from tests.teacher.server import ALL, EARLY, KEY, MODEL, Answer, Faults, Limits, Provider, serving

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


def test_async_clients_have_hundreds_in_flight(provider: Provider) -> None:
    provider.latency = lambda: 0.5

    async def generate_all() -> list[Any]:
        async with (
            anthropic.AsyncAnthropic(api_key=KEY, base_url=provider.address) as claude,
            openai.AsyncOpenAI(api_key=KEY, base_url=f"{provider.address}/v1") as gpt,
        ):
            messages = [claude.messages.create(**params(str(number))) for number in range(75)]
            completions = [gpt.chat.completions.create(**chat(str(number))) for number in range(75)]
            return await asyncio.gather(*messages, *completions)

    assert len(asyncio.run(generate_all())) == 150
    assert provider.most_in_flight > 75
    assert provider.max_concurrency == 0


def test_requests_that_hang_do_not_keep_the_server_from_ending() -> None:
    threads = threading.active_count()
    with serving(latency=lambda: 60.0) as provider:
        client = anthropic.Anthropic(api_key=KEY, base_url=provider.address, max_retries=0)
        failed = []

        def ask() -> None:
            try:
                client.messages.create(**params("a"))
            except anthropic.APIConnectionError as error:
                failed.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        while not provider.max_concurrency:
            time.sleep(0.01)
    asking.join(5)
    assert len(failed) == 1
    assert threading.active_count() == threads


# Limits


def test_limits_refuse_say_so_and_refill(provider: Provider, ask: Callable[[str], Any]) -> None:
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


def test_tokens_are_limited_as_each_api_counts_them(
    provider: Provider, claude: anthropic.Anthropic, gpt: openai.OpenAI
) -> None:
    provider.limits = Limits(input_tokens=120, output_tokens=10)
    headers = claude.messages.with_raw_response.create(**params("x" * 400)).headers
    assert headers["anthropic-ratelimit-input-tokens-remaining"] == "20"
    assert headers["anthropic-ratelimit-output-tokens-remaining"] == "5"
    headers = gpt.chat.completions.with_raw_response.create(**chat("x" * 400)).headers
    assert (headers["x-ratelimit-limit-tokens"], headers["x-ratelimit-remaining-tokens"]) == ("130", "25")
    assert re.fullmatch(r"(48|49)(\.\d+)?s", headers["x-ratelimit-reset-tokens"])
    with pytest.raises(anthropic.RateLimitError) as caught:
        claude.messages.create(**params("x" * 400))
    assert 30 <= int(caught.value.response.headers["retry-after"]) <= 40


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


def test_faults_are_drawn_anew_for_each_attempt_and_the_seed_tells_which(provider: Provider) -> None:
    def statuses(seed: int) -> list[int]:
        provider.ledger.clear()
        provider.faults = Faults(0.3, seed, kinds=("500", "529"))
        with openai.OpenAI(api_key=KEY, base_url=f"{provider.address}/v1", max_retries=0) as client:
            for _ in range(40):
                status_of(lambda: client.chat.completions.create(**chat("a")))
        return [entry.status for entry in provider.ledger]

    first = statuses(1)
    assert 4 <= len([status for status in first if status != 200]) <= 20
    assert first == statuses(1) != statuses(2)


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


def test_tool_that_must_be_used_is_used(provider: Provider, claude: anthropic.Anthropic) -> None:
    provider.answers = "schema"
    tools: Any = [{"name": "response", "input_schema": SCHEMA}]
    message = claude.messages.create(**params("a", tools=tools, tool_choice={"type": "tool", "name": "response"}))
    assert (message.stop_reason, message.content[-1].type) == ("tool_use", "tool_use")
    jsonschema.validate(message.content[-1].input, SCHEMA)


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


def test_message_batch_with_errors_expiries_and_duplicates(provider: Provider, claude: anthropic.Anthropic) -> None:
    provider.faults = Faults(seed=2, batch_errored=0.2, batch_expired=0.2, batch_duplicated=0.3)
    batch = ended(claude.messages.batches.retrieve, batch_of(claude, 100))
    results = list(claude.messages.batches.results(batch.id))
    kinds = Counter({result.custom_id: result.result.type for result in results}.values())
    assert kinds == {kind: getattr(batch.request_counts, kind) for kind in ("succeeded", "errored", "expired")}
    assert min(kinds.values()) > 5
    assert len(results) > 100
    errors = [result.result.error for result in results if result.result.type == "errored"]
    assert {error.error.type for error in errors} == {"api_error"}
    assert len(provider.billed()) == kinds["succeeded"]


def test_message_batch_can_be_cancelled_and_may_have_done_some(provider: Provider, claude) -> None:
    provider.batch_seconds = 30
    batch = claude.messages.batches.cancel(batch_of(claude).id)
    assert batch.processing_status == "canceling"
    batch = ended(claude.messages.batches.retrieve, batch)
    assert batch.request_counts.canceled > 30
    assert {result.result.type for result in claude.messages.batches.results(batch.id)} >= {"canceled"}


def test_message_batches_are_listed_newest_first_in_pages(provider: Provider, claude: anthropic.Anthropic) -> None:
    names = [batch_of(claude, 1).id for _ in range(5)][::-1]
    assert [batch.id for batch in claude.messages.batches.list(limit=2)] == names
    page = claude.messages.batches.list(limit=2)
    assert (page.has_more, page.first_id, page.last_id) == (True, names[0], names[1])
    page = claude.messages.batches.list(limit=2, before_id=names[3])
    assert ([batch.id for batch in page.data], page.has_more) == (names[1:3], True)


def test_message_batch_with_wrong_ids_is_refused_and_a_wrong_model_errs(provider: Provider, claude) -> None:
    item = {"custom_id": "a", "params": params("a")}
    for requests in ([item, item], [], [{**item, "custom_id": "a b"}]):
        with pytest.raises(anthropic.BadRequestError):
            claude.messages.batches.create(requests=requests)
    batch = ended(claude.messages.batches.retrieve, batch_of(claude, 1, model="other"))
    (result,) = claude.messages.batches.results(batch.id)
    assert result.result.error.error.type == "not_found_error"


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
    assert (batch.status, batch.metadata) == ("validating", {"run": "one"})
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


def test_openai_batch_with_errors_expiries_and_duplicates(provider: Provider, gpt: openai.OpenAI) -> None:
    provider.faults = Faults(seed=2, batch_errored=0.2, batch_expired=0.2, batch_duplicated=0.3)
    batch = ended(gpt.batches.retrieve, start(gpt, upload(gpt, lines_of(100)).id))
    assert batch.status == "expired"
    results, failures = read(gpt, batch.output_file_id), read(gpt, batch.error_file_id)
    names = {line["custom_id"] for line in results}
    assert len(names) == batch.request_counts.completed == len(provider.billed()) < len(results)
    assert len(names) + len(failures) == 100
    assert not names & {line["custom_id"] for line in failures}
    expired = [line for line in failures if line["response"] is None]
    assert {line["error"]["code"] for line in expired} == {"batch_expired"}
    assert {line["response"]["status_code"] for line in failures if line not in expired} == {500}


def test_openai_batch_is_validated_listed_and_cancelled(provider: Provider, gpt: openai.OpenAI) -> None:
    lines = lines_of(2)
    failed = start(gpt, upload(gpt, [lines[0], lines[0], {"custom_id": "x"}]).id)
    assert failed.status == "failed"
    assert [(error.code, error.line) for error in failed.errors.data] == [
        ("duplicate_custom_id", 2),
        ("invalid_json_line", 3),
    ]
    provider.batch_seconds = 30
    batches = [start(gpt, upload(gpt, lines).id, number=str(number)) for number in range(3)]
    names = [batch.id for batch in (*reversed(batches), failed)]
    assert [batch.id for batch in gpt.batches.list(limit=3)] == names
    batch = gpt.batches.cancel(names[0])
    assert batch.status == "cancelling"
    batch = ended(gpt.batches.retrieve, batch)
    assert batch.status == "cancelled"
    assert {line["error"]["code"] for line in read(gpt, batch.error_file_id)} == {"batch_cancelled"}
    assert not provider.billed()


def test_batch_whose_creation_was_not_heard_of_exists(provider: Provider, gpt: openai.OpenAI) -> None:
    provider.faults = Faults(batch_lost=1.0)
    file = upload(gpt, lines_of(1)).id
    with pytest.raises(openai.APIConnectionError):
        start(gpt, file, run="one")
    assert [batch.metadata for batch in gpt.batches.list()] == [{"run": "one"}]


def test_calls_about_batches_fail_as_well(provider: Provider, claude: anthropic.Anthropic) -> None:
    provider.faults = Faults(batch_calls=1.0, hang_seconds=0.0)
    for _ in range(10):
        with pytest.raises(anthropic.APIError):
            claude.messages.batches.list()
    assert len({entry.fault for entry in provider.ledger}) > 2


# On its own


def test_server_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "tests.teacher.server", "--requests-per-minute", "60", "--fault-share", "0.5"]
    command += ["--fault-kinds", "500", "--seed", "1", "--answers", "schema"]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline().strip()
            with openai.OpenAI(api_key=KEY, base_url=f"{address}/v1", max_retries=0) as client:
                for _ in range(10):
                    status_of(lambda: client.chat.completions.create(**chat("a", response_format=form())))
                state = client.get("/../_state", cast_to=object)
                ledger = client.get("/../_ledger", cast_to=object)
        finally:
            process.kill()
    assert state["by_status"] == Counter(str(entry["status"]) for entry in ledger)
    assert set(state["by_status"]) == {"200", "500"}
    assert state["billed"] == state["by_status"]["200"]
    assert len({entry["request_id"] for entry in ledger}) == 1
