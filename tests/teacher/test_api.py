"""What both hosted teachers promise, with their real SDKs against a loopback server."""

import asyncio
import gzip
import json
import logging
import math
import random
import resource
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, count, repeat
from typing import Any, BinaryIO

import pytest

from rebase.errors import RebaseError
from rebase.teacher import api
from rebase.teacher.anthropic import AnthropicTeacher
from rebase.teacher.api import FAILURES_TO_STOP, RETRIES, ApiSession, ApiTeacher
from rebase.teacher.openai import OpenAITeacher
from rebase.teacher.protocol import Failure, Message, Request, Response, Sampling
from rebase.teacher.rate_limits import FIRST_CONCURRENCY
from tests.loopback import writing
from tests.scripted import generate_all
from tests.teacher.server import KEY, MODEL, Answer, Faults, Limits, Provider

SCHEMA = {
    "type": "object",
    "properties": {"echo": {"type": "string", "maxLength": 40}},
    "required": ["echo"],
    "additionalProperties": False,
}
OUT_OF_MONEY = [
    (
        "anthropic",
        400,
        {"type": "invalid_request_error", "message": "Your credit balance is too low to access the Anthropic API."},
    ),
    (
        "anthropic",
        429,
        {
            "type": "rate_limit_error",
            "message": "Your organization has spent enough.",
            "details": {"error_code": "enforced_spend_limit_reached"},
        },
    ),
    (
        "openai",
        429,
        {"message": "You exceeded your current quota.", "type": "insufficient_quota", "code": "insufficient_quota"},
    ),
]

Make = Callable[..., ApiTeacher]


@dataclass
class Planned(Faults):
    """Faults in turn, one for each conversation, and then none."""

    plan: deque[str] = field(default_factory=deque)

    def draw(self) -> str | None:
        return self.plan.popleft() if self.plan else None


def request(prompt: str, **changes: Any) -> Request:
    values = {"system": "Write.", "schema": SCHEMA, "sampling": Sampling(0.7, 100), **changes}
    return Request(messages=(Message("user", prompt),), **values)


def prompts(count: int) -> list[str]:
    return [f"prompt {number}" for number in range(count)]


def ask(teacher: ApiTeacher, *asked: str) -> list[Any]:
    return generate_all(teacher, map(request, asked))


def with_session(teacher: ApiTeacher, use: Callable[[ApiSession], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with teacher.open() as session:
            return await use(session)

    return asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something has happened on the server."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def statuses(provider: Provider) -> Counter[int]:
    return Counter(entry.status for entry in provider.asked())


@pytest.fixture(params=["anthropic", "openai"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(kind: str, provider: Provider) -> Make:
    """Makes the teacher of the kind under test, of the loopback server."""

    def make(key: str | None = KEY, model: str = MODEL, address: str = provider.address, **limits: Any) -> ApiTeacher:
        if kind == "anthropic":
            return AnthropicTeacher(model, key, address, **limits)
        return OpenAITeacher(model, key, f"{address}/v1", **limits)

    return make


# The flow


def test_responses_in_order_under_random_latencies(make: Make, kind: str, provider: Provider) -> None:
    generator = random.Random(3)
    provider.latency = lambda: generator.uniform(0, 0.15)
    asked = prompts(60)

    responses = ask(make(max_concurrency=12), *asked)

    assert [response.text for response in responses] == [f'{{"echo": "{prompt}"}}' for prompt in asked]
    assert [response.key for response in responses] == [make().key(request(prompt)) for prompt in asked]
    assert {(response.finish, response.input_tokens, response.output_tokens) for response in responses} == {
        ("stop", 12, 5)
    }
    assert all(response.seconds > 0 for response in responses)
    assert FIRST_CONCURRENCY < provider.most_in_flight <= 12


def test_requests_are_sent_in_order(make: Make, provider: Provider) -> None:
    asked = prompts(30)
    ask(make(max_concurrency=1), *asked)
    assert [entry.prompt for entry in provider.asked()] == asked


def test_one_slow_response_holds_up_no_others(make: Make, provider: Provider) -> None:
    provider.plan("slow", Answer(seconds=0.5))
    finished = []

    async def use(session: ApiSession) -> None:
        async def one(prompt: str) -> None:
            await session.generate(request(prompt))
            finished.append(prompt)

        await asyncio.gather(*map(one, ["slow", *prompts(20)]))

    with_session(make(max_concurrency=2), use)
    assert finished[-1] == "slow"


def test_stop_finishes_open_requests_and_sends_no_more(make: Make, provider: Provider) -> None:
    provider.latency = lambda: 0.3

    async def use(session: ApiSession) -> list[Response | Failure]:
        asking = asyncio.gather(*(session.generate(request(prompt)) for prompt in prompts(30)))
        await until(lambda: provider.max_concurrency == FIRST_CONCURRENCY)
        session.stop()
        late = await session.generate(request("late"))
        assert isinstance(late, Failure)
        assert late.kind == "stopped"
        return await asking

    answers = with_session(make(), use)
    assert [type(answer) for answer in answers] == [Response] * FIRST_CONCURRENCY + [Failure] * (30 - FIRST_CONCURRENCY)
    assert {answer.kind for answer in answers[FIRST_CONCURRENCY:]} == {"stopped"}
    assert len(provider.asked()) == FIRST_CONCURRENCY


def test_a_cancelled_request_frees_its_slot(make: Make, provider: Provider) -> None:
    provider.plan("slow", Answer(seconds=30))

    async def use(session: ApiSession) -> Response | Failure:
        slow = asyncio.create_task(session.generate(request("slow")))
        await until(lambda: provider.max_concurrency == 1)
        slow.cancel()
        return await session.generate(request("next"))

    assert isinstance(with_session(make(max_concurrency=1), use), Response)


# Pacing


def test_retry_after_holds_back_all(make: Make, provider: Provider) -> None:
    provider.faults = Planned(retry_after=1.0, plan=deque(["429"]))
    provider.latency = lambda: 0.05
    asked_at: list[float] = []

    def answer(prompt: str) -> Answer:
        asked_at.append(time.monotonic())
        return Answer()

    provider.default = answer

    async def use(session: ApiSession) -> list[Response | Failure]:
        first = asyncio.create_task(session.generate(request("first")))
        await until(lambda: session._limiter._wait_until > 0)  # the complaint has been heard
        began = time.monotonic()
        others = await asyncio.gather(*(session.generate(request(prompt)) for prompt in prompts(10)))
        assert min(asked_at) - began > 0.7
        return [await first, *others]

    answers = with_session(make(), use)
    assert all(isinstance(answer, Response) for answer in answers)
    assert statuses(provider) == {429: 1, 200: 11}


def test_transient_faults_are_retried(make: Make, provider: Provider) -> None:
    faults = ["429 without retry-after", "500", "529", "reset", "half a body", "not JSON"]
    provider.faults = Planned(plan=deque(faults))
    responses = ask(make(), *prompts(20))
    assert [response.text for response in responses] == [f'{{"echo": "{prompt}"}}' for prompt in prompts(20)]
    assert Counter(entry.fault for entry in provider.asked()) == {**dict.fromkeys(faults, 1), None: 20}


def test_transient_statuses_are_retried(make: Make, provider: Provider) -> None:
    passing = [408, 409, 429, 500, 503]
    for status in passing:
        provider.plan(str(status), Answer(status=status), Answer(status=status), Answer(text="{}"))
    assert [response.text for response in ask(make(), *map(str, passing))] == ["{}"] * 5
    for status in passing:
        assert [entry.status for entry in provider.asked(str(status))] == [status, status, 200]


def test_request_that_hangs_fails_after_the_timeout_and_the_others_go_on(make: Make, provider: Provider) -> None:
    provider.plan("a", Answer(seconds=30))
    failure, response = ask(make(timeout=0.5), "a", "b")
    assert isinstance(failure, Failure)
    assert "no whole response within 0.5 seconds (teacher.timeout)" in failure.reason
    assert isinstance(response, Response)
    assert response.seconds < 25


class Said(float):
    """A number that is written as one likes."""

    text: str

    def __format__(self, _: str) -> str:
        return self.text


def test_nonsense_as_retry_after_is_not_waited_for(make: Make, provider: Provider) -> None:
    said = Said(1.0)
    said.text = "inf"  # one SDK would take it for a number, and wait for weeks
    provider.faults = Planned(retry_after=said, plan=deque(["429"]))
    assert isinstance(ask(make(), "a")[0], Response)
    assert statuses(provider) == {429: 1, 200: 1}


def test_steady_rate_just_under_the_providers_limits(make: Make, provider: Provider) -> None:
    per_second = 40
    provider.limits = Limits(requests=60 * per_second, burst_seconds=1.0)
    provider.latency = lambda: 0.3
    finished = []

    async def use(session: ApiSession) -> None:
        async def one(prompt: str) -> None:
            assert isinstance(await session.generate(request(prompt)), Response)
            finished.append(time.monotonic())

        await asyncio.gather(*map(one, prompts(5 * per_second // 2)))

    with_session(make(), use)
    assert statuses(provider)[429] <= 0.03 * len(finished)
    # The beginning is left out: the window opens, and the server has a second's worth to give at once.
    later = finished[per_second:]
    assert len(later) / (later[-1] - later[0]) > 0.5 * per_second


def test_token_limits_hold_by_the_counted_tokens(make: Make, provider: Provider) -> None:
    provider.limits = Limits(input_tokens=60_000, output_tokens=12_000, burst_seconds=2.0)
    provider.answers = "schema"
    asked = [f"{number} " + "long " * 40 for number in range(45)]
    responses = generate_all(make(), [request(prompt, sampling=Sampling(0.7, 20)) for prompt in asked])
    assert all(isinstance(response, Response) for response in responses)
    assert statuses(provider)[429] <= 3


# Waiting without end

COMPLETION = {
    "choices": [{"message": {"content": "{}"}, "finish_reason": "stop"}],
    "content": [{"type": "text", "text": "{}"}],
    "stop_reason": "end_turn",
}
QUOTA = b'{"error": {"message": "the quota is spent until noon"}}'


def http(body: bytes | None, *headers: str, status: str = "200 OK") -> bytes:
    """A response, or only its head."""
    lines = [f"HTTP/1.1 {status}", "content-type: application/json", *headers]
    lines += [] if body is None else [f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def drip(begin: bytes, content: bytes) -> Iterator[bytes]:
    yield begin
    for number in count():
        yield content[number % len(content) :][:1]
        time.sleep(0.05)


def completion(**usage: Any) -> bytes:
    return http(json.dumps(COMPLETION | {"usage": usage}).encode())


NO_RESPONSE = {
    "drips in the body": lambda: drip(http(None, "content-length: 900"), b" "),
    "drips in the headers": lambda: drip(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"),
    "drips chunks without end": lambda: drip(http(None, "transfer-encoding: chunked") + b"1\r\n", b" \r\n1\r\n"),
    "floods without end": lambda: chain(
        [http(None, "transfer-encoding: chunked")], repeat(b"10000\r\n" + b" " * 2**16 + b"\r\n")
    ),
    "a gigabyte": lambda: chain([http(None, f"content-length: {2**30}")], repeat(b" " * 2**16, 2**14)),
    "a bomb": lambda: [http(BOMB, "content-encoding: gzip")],
    "no HTTP": lambda: [b"\x00\x01hello\r\n\r\n" * 5],
    "breaks off in the body": lambda: [http(None, "content-length: 500") + b"{"],
    "breaks off in the headers": lambda: [b"HTTP/1.1 200 OK\r\ncont"],
    "nothing": lambda: [],
    "tokens in words": lambda: [completion(prompt_tokens="many", input_tokens="many")],
    "endless tokens": lambda: [completion(completion_tokens=math.inf, output_tokens=math.inf)],
    "fewer tokens than none": lambda: [completion(prompt_tokens=-5, input_tokens=-5)],
    "deep": lambda: [http(b"[" * 100_000)],
}
BOMB = gzip.compress(b" " * 2**28, 1)  # a bomb of a few hundred KB


@pytest.mark.parametrize("parts", NO_RESPONSE.values(), ids=NO_RESPONSE.keys())
def test_what_is_no_response_fails_in_bounded_time_and_memory(make: Make, parts: Callable[[], Any]) -> None:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def write(asked: str, stream: BinaryIO) -> None:
        for part in parts() if "odd" in asked else [completion()]:
            stream.write(part)
            stream.flush()

    with writing(write) as address:
        teacher = make(address=address, timeout=1.0)
        began = time.monotonic()
        first, *failures, last = ask(teacher, "a", "odd 1", "odd 2", "b")
    assert time.monotonic() - began < 20
    assert isinstance(first, Response)
    assert isinstance(last, Response)
    assert all(isinstance(failure, Failure) and failure.kind == "failed" for failure in failures)
    assert all("teacher.timeout" in failure.reason or "not a response" in failure.reason for failure in failures)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 400_000  # KB


@pytest.mark.parametrize("headers", [
    ["retry-after: 1"],
    ["retry-after: 86400"],
    ["retry-after: Fri, 31 Dec 2100 23:59:59 GMT"],
    ["anthropic-ratelimit-requests-limit: 0.001", "anthropic-ratelimit-requests-remaining: 0",
     "x-ratelimit-limit-requests: 0.001", "x-ratelimit-remaining-requests: 0"],
    ["anthropic-ratelimit-requests-limit: 0", "anthropic-ratelimit-requests-remaining: 0",
     "x-ratelimit-limit-requests: 0", "x-ratelimit-remaining-requests: 0"],
], ids=["again and again", "a day", "a century", "almost no requests", "no requests"])  # fmt: skip
def test_a_provider_that_always_asks_to_wait_ends_the_run_with_its_words(
    make: Make, kind: str, headers: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    def write(asked: str, stream: BinaryIO) -> None:
        stream.write(completion() if "/models/" in asked else http(QUOTA, *headers, status="429 Too Many Requests"))

    async def use(session: ApiSession) -> list[Any]:
        return await asyncio.gather(*(session.generate(request(p)) for p in prompts(40)), return_exceptions=True)

    with writing(write) as address:
        began = time.monotonic()
        answers = with_session(make(address=address, timeout=1.0), use)
    assert time.monotonic() - began < 30
    errors = [answer for answer in answers if not isinstance(answer, Failure)]
    assert errors
    assert all(isinstance(error, RebaseError) and "run again to continue" in str(error) for error in errors)
    assert any("the quota is spent until noon" in str(error) for error in errors)
    assert "the run continues after that" not in caplog.text


def test_a_token_count_in_digits_is_a_number(make: Make) -> None:
    usage = {"prompt_tokens": "12", "completion_tokens": "5", "input_tokens": "12", "output_tokens": "5"}
    with writing(lambda _, stream: stream.write(completion(**usage))) as address:
        (response,) = ask(make(address=address), "a")
    assert (response.input_tokens, response.output_tokens) == (12, 5)


def test_waiting_for_the_rate_limits_is_not_part_of_the_timeout(make: Make, provider: Provider) -> None:
    provider.faults = Planned(retry_after=1.2, plan=deque(["429"]))
    assert isinstance(ask(make(timeout=0.9), "a")[0], Response)
    assert statuses(provider) == {429: 1, 200: 1}


# What cannot succeed


def test_lasting_error_is_a_failure_in_the_providers_words_and_the_others_go_on(make: Make, provider: Provider) -> None:
    provider.plan("b", Answer(status=400, message="schema is too complex"))
    first, second, third = ask(make(), "a", "b", "c")
    assert isinstance(first, Response)
    assert second == Failure(second.key, "status 400: schema is too complex")
    assert isinstance(third, Response)
    assert len(provider.asked("b")) == 1


def test_retries_end(make: Make, provider: Provider) -> None:
    provider.default = lambda prompt: Answer(status=500, message="does not work")
    (failure,) = ask(make(), "a")
    assert failure.reason == "status 500: does not work"
    assert len(provider.asked("a")) == 1 + RETRIES


async def _ask_and_look_on(session: ApiSession, provider: Provider, count: int) -> list[Any]:
    """All the answers and errors; nothing is sent when they are there, nor for another request."""
    tasks = [session.generate(request(prompt)) for prompt in prompts(count)]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    sent = len(provider.asked())
    late = await session.generate(request("late"))
    assert isinstance(late, Failure)
    assert late.kind == "stopped"
    assert len(provider.asked()) == sent
    return answers


def test_ten_failures_in_a_row_stop_with_the_providers_words(make: Make, provider: Provider) -> None:
    provider.default = lambda prompt: Answer(status=400, message="the model is on holiday")
    answers = with_session(make(), lambda session: _ask_and_look_on(session, provider, 200))
    errors = [answer for answer in answers if isinstance(answer, RebaseError)]
    told = "requests in a row failed. The last error: status 400: the model is on holiday"
    assert any(f"{FAILURES_TO_STOP} {told}" in str(error) for error in errors)
    failures = [answer for answer in answers if isinstance(answer, Failure)]
    assert len(errors) + len(failures) == 200
    assert sum(failure.kind == "failed" for failure in failures) == FAILURES_TO_STOP - 1
    assert len(provider.asked()) < FAILURES_TO_STOP + FIRST_CONCURRENCY


def test_failures_with_successes_between_them_do_not_stop(make: Make, provider: Provider) -> None:
    provider.default = lambda prompt: Answer() if prompt.endswith("0") else Answer(status=400)
    answers = ask(make(max_concurrency=1), *prompts(60))
    assert Counter(type(answer) for answer in answers) == {Response: 6, Failure: 54}


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_status_that_all_would_get_stops_at_once(make: Make, provider: Provider, status: int) -> None:
    provider.default = lambda prompt: Answer(status=status, message="not for you")
    answers = with_session(make(), lambda session: _ask_and_look_on(session, provider, 200))
    errors = [answer for answer in answers if isinstance(answer, RebaseError)]
    assert f"returns status {status}: not for you" in str(errors[0])
    assert len(provider.asked()) <= FIRST_CONCURRENCY


@pytest.mark.parametrize(("kind", "status", "error"), OUT_OF_MONEY, ids=["no credit", "spend limit", "quota"])
def test_no_credit_stops_the_run_without_a_retry(
    make: Make, provider: Provider, status: int, error: dict[str, Any]
) -> None:
    body = json.dumps({"type": "error", "error": error}).encode()
    provider.default = lambda prompt: Answer(status=status, body=body)
    answers = with_session(make(), lambda session: _ask_and_look_on(session, provider, 100))
    errors = [answer for answer in answers if isinstance(answer, RebaseError)]
    assert error["message"] in str(errors[0])
    assert "credit" in str(errors[0])
    assert len(provider.asked()) <= FIRST_CONCURRENCY
    assert max(Counter(entry.prompt for entry in provider.asked()).values()) == 1


def test_wrong_key_stops_at_once_and_is_not_shown(make: Make, provider: Provider) -> None:
    with pytest.raises(RebaseError, match="401: invalid key") as caught:
        ask(make(key="sk-wrong-key"), *prompts(200))
    assert "sk-wrong-key" not in str(caught.value)
    assert len(provider.asked()) <= FIRST_CONCURRENCY


def test_unknown_model_stops_at_once(make: Make, provider: Provider) -> None:
    with pytest.raises(RebaseError, match="404: model no-such-model not found"):
        ask(make(model="no-such-model"), *prompts(200))
    assert len(provider.asked()) <= FIRST_CONCURRENCY


def test_unreachable_host_stops_with_its_address(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "RETRIES", 0)
    with pytest.raises(RebaseError, match=r"cannot be reached at http://127.0.0.1:9.*\n?.*base_url"):
        ask(make(address="http://127.0.0.1:9"), *prompts(20))


@pytest.mark.parametrize("status", ["301 Moved Permanently", "307 Temporary Redirect"])
def test_a_redirect_stops_with_its_address_and_gets_neither_keys_nor_prompts(make: Make, status: str) -> None:
    received: list[str] = []

    def redirect(asked: str, stream: BinaryIO) -> None:
        stream.write(http(b"", f"location: {other}{asked.partition(' ')[0]}", status=status))

    with (
        writing(lambda asked, _: received.append(asked)) as other,
        writing(redirect) as address,
        pytest.raises(RebaseError, match=rf"{address}.* redirects to {other}.* teacher\.base_url"),
    ):
        ask(make(address=address, headers={"x-gateway-key": "a-secret"}), *prompts(20))
    assert not received


def test_ten_empty_responses_in_a_row_stop_with_advice(make: Make, provider: Provider) -> None:
    provider.default = lambda prompt: Answer(text="")
    answers = with_session(make(), lambda session: _ask_and_look_on(session, provider, 100))
    errors = [str(answer) for answer in answers if isinstance(answer, RebaseError)]
    assert any("10 requests in a row failed. The last error: the response is empty. Models that" in e for e in errors)
    assert any("teacher.extra_body" in error for error in errors)


# What comes back


def test_body_that_is_no_response_is_a_failure(make: Make, provider: Provider) -> None:
    bodies = [b'{"id": ', b"{}", b"[1, 2]", b"<html>Welcome</html>", b'{"content": [], "choices": []}', b""]
    for number, body in enumerate(bodies):
        kind = "text/html" if b"html" in body else "application/json"
        provider.plan(str(number), *[Answer(body=body, content_type=kind)] * 2)
    *failures, response = ask(make(), *map(str, range(6)), "good")
    for failure in failures:
        assert isinstance(failure, Failure)
        assert failure.reason
    assert isinstance(response, Response)


def test_refusals_and_cut_off_responses_are_marked(make: Make, provider: Provider) -> None:
    provider.plan("a", Answer(text="I will not.", finish="refusal"))
    provider.plan("b", Answer(text='{"echo": "b', finish="length"))
    refused, cut = ask(make(), "a", "b")
    assert (refused.finish, refused.text) == ("refusal", "I will not.")
    assert (cut.finish, cut.text) == ("length", '{"echo": "b')


def test_half_a_surrogate_pair_does_not_break_a_response(make: Make, provider: Provider) -> None:
    provider.plan("a", Answer(text="cut \ud83d"))
    (response,) = ask(make(), "a")
    assert response.text == "cut \ufffd"
    response.text.encode()


def test_text_that_is_not_unicode_fails_alone(make: Make) -> None:
    answers = ask(make(), "cut \ud83d", "b")
    assert all(isinstance(answer, (Response, Failure)) for answer in answers)
    assert isinstance(answers[1], Response)


# The key, and the environment


def test_missing_key_is_an_error_before_any_work_that_says_where_to_put_it(kind: str) -> None:
    teacher = {"anthropic": AnthropicTeacher, "openai": OpenAITeacher}[kind]("some-model", None)
    for attempt in (teacher.check, lambda: ask(teacher, "a")):
        with pytest.raises(RebaseError, match=rf"{kind.upper()}_API_KEY.*\n?.*conf/local/credentials.yml"):
            attempt()


def test_key_with_white_space_is_an_error_that_does_not_show_it(make: Make) -> None:
    with pytest.raises(RebaseError, match="white space") as caught:
        make(key="sk-right-key\n").check()
    assert "sk-right" not in str(caught.value)


def test_key_is_in_no_representation_no_failure_and_no_log(
    make: Make, caplog: pytest.LogCaptureFixture, provider: Provider
) -> None:
    teacher = make()
    provider.plan("a", Answer(status=400, message=f"bad {KEY}"))
    provider.plan("b", Answer(body=f"who is {KEY}?".encode()), Answer(body=f"who is {KEY}?".encode()))
    provider.plan("c", Answer(status=429), Answer(status=500, message=f"broken by {KEY}"))
    with caplog.at_level(logging.DEBUG, logger="rebase"):
        answers = ask(teacher, "a", "b", "c")
        provider.default = lambda prompt: Answer(status=403, body=json.dumps({"error": {"key": KEY}}).encode())
        with pytest.raises(RebaseError, match="403") as caught:
            ask(teacher, "d")
    assert isinstance(answers[0], Failure)
    assert isinstance(answers[1], Failure)
    for shown in (repr(teacher), str(teacher), repr(answers), str(caught.value), caplog.text):
        assert KEY not in shown


def test_proxy_of_the_environment_is_used_and_the_environment_stays_as_it_is(
    make: Make, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    for name in ("all_proxy", "no_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HTTP_PROXY", provider.address)  # it answers as if it had asked the host
    before = dict(os.environ)
    (response,) = ask(make(address="http://teacher.invalid"), "a")
    assert response.text == '{"echo": "a"}'
    assert provider.asked("a")[0].headers["host"] == "teacher.invalid"

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert isinstance(ask(make(), "b")[0], Response)
    monkeypatch.setenv("HTTP_PROXY", provider.address)
    monkeypatch.delenv("NO_PROXY")
    assert dict(os.environ) == before


def test_a_handle_may_be_opened_again_and_by_several_at_once(make: Make) -> None:
    teacher = replace(make(max_concurrency=4))

    async def main() -> list[list[Response | Failure]]:
        async def once(name: str) -> list[Response | Failure]:
            async with teacher.open() as session:
                return list(await asyncio.gather(*(session.generate(request(f"{name} {n}")) for n in range(5))))

        return list(await asyncio.gather(once("a"), once("b")))

    for _ in range(2):
        answers = asyncio.run(main())
        assert [response.text for response in answers[1]] == [f'{{"echo": "b {n}"}}' for n in range(5)]
