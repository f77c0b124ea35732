"""What both hosted teachers promise, with their real SDKs against a loopback server."""

import logging
import random
from typing import Any

import pytest

from rebase.errors import RebaseError
from rebase.teacher.anthropic import AnthropicTeacher
from rebase.teacher.api import WINDOW, ApiTeacher
from rebase.teacher.openai import OpenAITeacher
from rebase.teacher.protocol import Failure, Message, Reply, Request, Sampling
from tests.teacher.server import KEY, MODEL, Answer, Provider

SCHEMA = {
    "type": "object",
    "properties": {"echo": {"type": "string", "maxLength": 40}},
    "required": ["echo"],
    "additionalProperties": False,
}


def request(prompt: str, **changes: Any) -> Request:
    values = {"system": "Write.", "schema": SCHEMA, "sampling": Sampling(0.7, 100), **changes}
    return Request(messages=(Message("user", prompt),), **values)


def prompts(count: int) -> list[str]:
    return [f"prompt {number}" for number in range(count)]


def ask(teacher: ApiTeacher, *asked: str) -> list[Reply | Failure]:
    with teacher.open() as session:
        return list(session.ask(request(prompt) for prompt in asked))


@pytest.fixture(params=["anthropic", "openai"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(kind: str, provider: Provider):
    """Makes the teacher of the kind under test, of the loopback server."""

    def make(key: str | None = KEY, model: str = MODEL, address: str = provider.address) -> ApiTeacher:
        if kind == "anthropic":
            return AnthropicTeacher(model, key, address)
        return OpenAITeacher(model, key, f"{address}/v1")

    return make


def test_replies_in_order_under_random_latencies(make, kind: str, provider: Provider) -> None:
    generator = random.Random(3)
    provider.default = lambda prompt: Answer(seconds=generator.uniform(0, 0.05))
    asked = prompts(40)

    replies = ask(make(), *asked)

    assert [reply.text for reply in replies] == [f'{{"echo": "{prompt}"}}' for prompt in asked]
    assert [reply.key for reply in replies] == [request(prompt).key(kind, MODEL) for prompt in asked]
    assert {(reply.finish, reply.input_tokens, reply.output_tokens) for reply in replies} == {("stop", 12, 5)}
    assert 1 < provider.most_in_flight <= WINDOW


def test_requests_are_read_no_further_ahead_than_the_window(make) -> None:
    read = []

    def stream():
        for prompt in prompts(100):
            read.append(prompt)
            yield request(prompt)

    with make().open() as session:
        replies = session.ask(stream())
        next(replies)
        assert len(read) == WINDOW


def test_caller_who_has_enough_stops_the_asking(make, provider: Provider) -> None:
    with make().open() as session:
        replies = session.ask(request(prompt) for prompt in prompts(100))
        next(replies)
        replies.close()
    assert len(provider.asked()) <= 2 * WINDOW


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_error_is_asked_again(make, provider: Provider, status: int) -> None:
    provider.plan("a", Answer(status=status), Answer(status=status), Answer(text="{}"))
    assert [reply.text for reply in ask(make(), "a")] == ["{}"]
    assert [entry.status for entry in provider.asked("a")] == [status, status, 200]


def test_lasting_error_is_a_failure_in_the_providers_words_and_the_others_go_on(make, provider: Provider) -> None:
    provider.plan("b", Answer(status=400, message="schema is too complex"))
    first, second, third = ask(make(), "a", "b", "c")
    assert isinstance(first, Reply)
    assert isinstance(second, Failure)
    assert second.reason == "status 400: schema is too complex"
    assert isinstance(third, Reply)


def test_retries_end(make, provider: Provider) -> None:
    provider.default = lambda prompt: Answer(status=529, message="overloaded")
    (failure,) = ask(make(), "a")
    assert failure.reason == "status 529: overloaded"
    assert len(provider.asked("a")) == 5


def test_wrong_key_stops_at_once_and_is_not_told(make, provider: Provider) -> None:
    with pytest.raises(RebaseError, match="401: invalid key") as caught:
        ask(make(key="sk-wrong-key"), *prompts(200))
    assert "sk-wrong-key" not in str(caught.value)
    assert len(provider.asked()) <= 2 * WINDOW


def test_unknown_model_stops_at_once(make, provider: Provider) -> None:
    with pytest.raises(RebaseError, match="404: model no-such-model not found"):
        ask(make(model="no-such-model"), *prompts(200))
    assert len(provider.asked()) <= 2 * WINDOW


def test_unreachable_host_stops_with_its_address(make, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("anthropic", "openai"):
        monkeypatch.setattr(f"rebase.teacher.{module}.RETRIES", 0)
    with pytest.raises(RebaseError, match=r"cannot be reached at http://127.0.0.1:9.*refused"):
        ask(make(address="http://127.0.0.1:9"), *prompts(20))


@pytest.mark.parametrize(
    "answer",
    [
        Answer(body=b'{"id": '),
        Answer(body=b"{}"),
        Answer(body=b"[1, 2]"),
        Answer(body=b"<html>Welcome</html>", content_type="text/html"),
        Answer(body=b'{"content": [], "choices": []}'),
        Answer(body=b""),
    ],
    ids=["cut", "empty object", "list", "page", "no content", "nothing"],
)
def test_body_that_is_no_response_is_a_failure(make, provider: Provider, answer: Answer) -> None:
    provider.plan("b", answer)
    failure, reply = ask(make(), "b", "c")
    assert isinstance(failure, Failure)
    assert failure.reason
    assert isinstance(reply, Reply)


def test_refusal_and_cut_reply_say_so(make, provider: Provider) -> None:
    provider.plan("a", Answer(text="I will not.", finish="refusal"))
    provider.plan("b", Answer(text='{"echo": "b', finish="length"))
    refused, cut = ask(make(), "a", "b")
    assert (refused.finish, refused.text) == ("refusal", "I will not.")
    assert (cut.finish, cut.text) == ("length", '{"echo": "b')


def test_half_a_surrogate_pair_does_not_break_a_reply(make, provider: Provider) -> None:
    provider.plan("a", Answer(text="cut \ud83d"))
    (reply,) = ask(make(), "a")
    assert reply.text == "cut \ufffd"
    reply.text.encode()


def test_replies_are_told_of_as_they_arrive(make, provider: Provider) -> None:
    provider.plan("slow", Answer(seconds=0.3))
    arrived = []
    with make().open() as session:
        asked = [request(prompt) for prompt in ("slow", "b", "c")]
        list(session.ask(asked, arrived=lambda request, reply: arrived.append(request.messages[0].content)))
    assert sorted(arrived[:2]) == ["b", "c"]
    assert arrived[2] == "slow"


def test_missing_key_is_an_error_before_any_work_that_says_where_to_put_it(kind: str) -> None:
    teacher = {"anthropic": AnthropicTeacher, "openai": OpenAITeacher}[kind]("some-model", None)
    for attempt in (teacher.check, teacher.open().__enter__):
        with pytest.raises(RebaseError, match=rf"{kind.upper()}_API_KEY.*\n?.*conf/local/credentials.yml"):
            attempt()


def test_key_with_white_space_is_refused_without_telling_it(make) -> None:
    with pytest.raises(RebaseError, match="white space") as caught:
        make(key="sk-right-key\n").check()
    assert "sk-right" not in str(caught.value)


def test_key_is_in_no_representation_and_no_log(make, caplog: pytest.LogCaptureFixture, provider: Provider) -> None:
    teacher = make()
    with caplog.at_level(logging.DEBUG, logger="rebase"):
        provider.plan("a", Answer(status=400, message=f"bad {KEY}"))
        (failure,) = ask(teacher, "a")
    assert KEY not in repr(teacher)
    assert KEY not in failure.reason
    assert KEY not in caplog.text
