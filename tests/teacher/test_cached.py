"""The teacher behind its store: what is stored is not asked, what is wrong is mended once, what is sent is kept."""

import asyncio
import json
import logging
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebase.errors import RebaseError
from rebase.teacher.batch_journal import Batch
from rebase.teacher.budget import Price, PriceTable
from rebase.teacher.cached import find_error, price_of, repair_request
from rebase.teacher.protocol import Failure, Message, Request, Response
from rebase.teacher.response_cache import ResponseCache
from tests.scripted import NO_PRICES, cached, generate_all
from tests.teacher.server import MODEL, Answer, Provider, serving
from tests.teacher.teachers import SCHEMA, Candid, Echo, cached_keys, echo, hosted, identity, prompts, request, texts_of

#: 7 tokens in and 3 out, as ``Candid`` counts, cost 1.3 dollars.
PRICE = Price(input=100_000, output=200_000)


def texts(teacher: Candid, path: Path, asked: list[str]) -> list[str]:
    return texts_of(generate_all(cached(teacher, path), map(request, asked)))


# The store comes first


def test_second_run_sends_nothing_and_opens_nothing(path: Path) -> None:
    first, second = Echo(), Echo()
    asked = prompts(100)
    assert texts(first, path, asked) == list(map(echo, asked))
    assert texts(second, path, asked) == list(map(echo, asked))
    assert (first.prompts, first.opened) == (asked, 1)
    assert (second.prompts, second.opened) == ([], 0)


def test_new_requests_cost_only_themselves(path: Path) -> None:
    texts(Echo(), path, prompts(3))
    teacher = Echo()
    texts(teacher, path, ["new", *prompts(4)])
    assert teacher.prompts == ["new", "prompt 3"]


def test_what_a_response_depends_on_is_in_its_key(path: Path) -> None:
    asked = request("a")
    other_sample = request("a", sample=1)
    other_schema = request("a", schema={"type": "object"})
    teacher = Echo()
    generate_all(cached(teacher, path), [asked, other_sample, other_schema, asked])
    assert teacher.requests == [asked, other_sample, other_schema]


def test_failures_are_not_cached(path: Path) -> None:
    assert texts(Echo(), path, ["a", "fail", "b"]) == [echo("a"), "no luck", echo("b")]
    teacher = Echo()
    assert texts(teacher, path, ["a", "fail", "b"]) == [echo("a"), "no luck", echo("b")]
    assert teacher.prompts == ["fail"]


@settings(max_examples=20)
@given(known=st.sets(st.integers(0, 90), max_size=60), asked=st.lists(st.integers(0, 90), max_size=150))
def test_each_missing_response_is_requested_once(
    tmp_path_factory: pytest.TempPathFactory, known: set[int], asked: list[int]
) -> None:
    path = tmp_path_factory.mktemp("store") / "responses.sqlite"
    texts(Echo(), path, [str(number) for number in known])
    teacher = Echo()
    wanted = [str(number) for number in asked]
    assert texts(teacher, path, wanted) == list(map(echo, wanted))
    assert sorted(teacher.prompts) == sorted({str(number) for number in asked if number not in known})


def test_responses_of_this_run_are_cached_for_this_run(path: Path) -> None:
    teacher, requests = Echo(), [request("a"), request("b")]

    async def run() -> tuple[list, dict]:
        async with cached(teacher, path).open() as session:
            answers = [await session.generate(one) for one in (*requests, *requests)]
            return answers, session.usage.summary()

    answers, usage = asyncio.run(run())
    assert texts_of(answers) == [echo("a"), echo("b")] * 2
    assert teacher.prompts == ["a", "b"]
    assert (usage["responses"], usage["cached"], usage["used"]) == (2, 2, 4)
    assert (usage["input_tokens"], usage["output_tokens"]) == (14, 6)


# Repair


def mend(first: str, second: "str | tuple[str, str] | Exception") -> Candid:
    """Says ``first``, and ``second`` when shown the error."""
    return Candid(lambda asked: second if len(asked.messages) > 1 else first)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("no json", "not JSON"),
        ('{"echo": 5}', r"$.echo: 5 is not of type 'string'"),
        ("{}", "'echo' is a required property"),
        (json.dumps({"echo": "a" * 41}), "is too long"),
    ],
)
def test_invalid_response_is_shown_to_the_teacher_with_its_error(path: Path, wrong: str, words: str) -> None:
    teacher = mend(wrong, echo("right"))
    (answer,) = generate_all(cached(teacher, path, PRICE), [request("a")])

    assert answer.text == echo("right")
    assert (answer.input_tokens, answer.output_tokens) == (14, 6)
    assert answer.dollars == pytest.approx(2.6)
    first, second = teacher.requests
    assert second == replace(first, messages=second.messages)
    assert second.messages[:2] == (Message("user", "a"), Message("assistant", wrong))
    assert second.messages[2].role == "user"
    complaint = second.messages[2].content
    assert words in complaint
    assert json.dumps(SCHEMA) in complaint
    assert answer.key == second.key("scripted", "test")
    assert cached_keys(path) == {one.key("scripted", "test") for one in teacher.requests}


def test_repaired_response_is_found_again_with_the_cost_of_both(path: Path) -> None:
    (first,) = generate_all(cached(mend("no json", echo("right")), path, PRICE), [request("a")])
    teacher = mend("never", "asked")
    (second,) = generate_all(cached(teacher, path, PRICE), [request("a")])
    assert second == first
    assert not teacher.requests


def test_second_response_is_returned_even_if_it_is_invalid(path: Path) -> None:
    teacher = mend("no json", "again none")
    (answer,) = generate_all(cached(teacher, path), [request("a")])
    assert answer.text == "again none"
    assert len(teacher.requests) == 2


def test_wrong_response_stays_where_its_repair_fails_and_the_next_run_tries_again(path: Path) -> None:
    (answer,) = generate_all(cached(mend("no json", ValueError("no luck")), path, PRICE), [request("a")])
    assert (answer.text, answer.input_tokens, answer.dollars) == ("no json", 7, pytest.approx(1.3))
    teacher = mend("never", echo("right"))
    (answer,) = generate_all(cached(teacher, path), [request("a")])
    assert answer.text == echo("right")
    assert len(teacher.requests) == 1


@pytest.mark.parametrize("finish", ["length", "refusal"])
def test_cut_responses_and_refusals_are_not_repaired(path: Path, finish: str) -> None:
    teacher = Candid(lambda asked: ('{"ec', finish))
    (answer,) = generate_all(cached(teacher, path), [request("a")])
    assert (answer.text, answer.finish) == ('{"ec', finish)
    assert len(teacher.requests) == 1


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_empty_response_is_neither_cached_nor_shown_to_the_teacher(
    path: Path, finish: str, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = Candid(lambda asked: (" ", finish))
    for number in (1, 2):
        (answer,) = generate_all(cached(teacher, path, PRICE), [request("a")])
        assert (answer.text, answer.dollars) == (" ", pytest.approx(1.3))
        assert len(teacher.requests) == number
    assert cached_keys(path) == set()
    assert caplog.text.count("1 of 1 responses of scripted/test are empty, and not cached. Models that reason") == 2


def test_empty_response_of_an_earlier_version_is_not_used(path: Path) -> None:
    asked = request("a")
    with closing(ResponseCache(path)) as store:
        store.put(asked, Response(asked.key("scripted", "test"), "", "stop", 1, 1), "scripted", "test")
    assert texts(Echo(), path, ["a"]) == [echo("a")]
    assert texts(Echo(), path, ["fail", "a"]) == ["no luck", echo("a")]


def test_wrapped_json_needs_no_repair(path: Path) -> None:
    text = f"<think>Hm.</think>\n```json\n{echo('a')}\n```"
    teacher = Candid(lambda asked: text)
    (answer,) = generate_all(cached(teacher, path), [request("a")])
    assert answer.text == text
    assert len(teacher.requests) == 1


def test_responses_of_two_servers_are_kept_apart(path: Path, provider: Provider) -> None:
    with serving() as other:
        for server in (provider, other, provider):
            generate_all(cached(hosted("openai", server.address), path), [request("a")])
        extra = replace(hosted("openai", provider.address), extra_body={"top_p": 0.5})
        generate_all(cached(extra, path), [request("a")])
        assert (len(provider.asked()), len(other.asked())) == (2, 1)
    with closing(ResponseCache(path)) as store:
        addresses = [row[-1] for row in store.summary()]
    assert len(addresses) == 3
    assert f"{provider.address}/v1" in addresses


def test_repairs_are_counted(path: Path) -> None:
    teacher = Candid(lambda asked: echo("right") if len(asked.messages) > 1 else asked.messages[0].content)

    async def run() -> dict:
        async with cached(teacher, path, PRICE).open() as session:
            await asyncio.gather(*(session.generate(request(prompt)) for prompt in ("wrong", echo("a"), "wrong 2")))
            return session.usage.summary()

    usage = asyncio.run(run())
    assert (usage["responses"], usage["repaired"], usage["failed"]) == (5, 2, 0)
    assert usage["dollars"] == usage["used_dollars"] == pytest.approx(5 * 1.3)


def test_faults_are_those_of_the_schema() -> None:
    asked = request("a")
    assert find_error(asked, Response("", echo("a"), "stop", 1, 1)) is None
    assert "JSON" in find_error(asked, Response("", '{"echo":', "stop", 1, 1))
    assert find_error(asked, Response("", '{"echo":', "length", 1, 1)) is None
    assert len(find_error(asked, Response("", json.dumps({"echo": "x" * 5000}), "stop", 1, 1))) < 400
    assert repair_request(asked, "said", "fault").key("a", "b") != asked.key("a", "b")


# The end


class Slow(Echo):
    """Answers when told to, ``at_once`` requests at a time, and sends nothing after ``stop``."""

    def __init__(self, at_once: int) -> None:
        super().__init__()
        self.filter = asyncio.Event()
        self.places = asyncio.Semaphore(at_once)
        self.is_stopped = False

    async def generate(self, asked: Request) -> Response | Failure:
        async with self.places:
            if self.is_stopped:
                return Failure(asked.key(self.provider, self.model), "not sent", "stopped")
            answering = asyncio.create_task(super().generate(asked))
            await self.filter.wait()
            return await answering

    def stop(self) -> None:
        self.is_stopped = True
        asyncio.get_running_loop().call_later(0.05, self.filter.set)


def test_early_close_caches_open_requests_and_sends_no_more(path: Path) -> None:
    async def run() -> Slow:
        teacher = Slow(at_once=5)
        async with cached(teacher, path).open() as session:
            tasks = [asyncio.create_task(session.generate(request(prompt))) for prompt in prompts(20)]
            while len(teacher.requests) < 5:
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return teacher

    teacher = asyncio.run(run())
    assert teacher.prompts == prompts(5)
    assert cached_keys(path) == {request(prompt).key("scripted", "test") for prompt in prompts(5)}


def test_error_of_the_caller_ends_it_the_same_way(path: Path, provider: Provider) -> None:
    provider.default = lambda prompt: Answer(seconds=0.2)

    async def run() -> None:
        async with cached(hosted("openai", provider.address), path).open() as session:
            tasks = [asyncio.create_task(session.generate(request(prompt))) for prompt in prompts(100)]
            while not provider.max_concurrency:
                await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            raise KeyError("a bug")

    with pytest.raises(KeyError):
        asyncio.run(run())
    asked = {request(entry.prompt).key(*identity("openai", provider.address)) for entry in provider.asked()}
    assert 0 < len(asked) < 100
    assert cached_keys(path) == asked


@pytest.mark.parametrize("kind", ["openai", pytest.param("anthropic", marks=pytest.mark.slow)])
def test_run_that_waits_too_long_ends_with_all_responses_cached(kind: str, path: Path, provider: Provider) -> None:
    answered: list[str] = []

    def answer(prompt: str) -> Answer:
        if len(answered) == 5 and prompt not in answered:
            return Answer(status=429, message="the quota is spent until noon", headers={"retry-after": "86400"})
        answered.append(prompt)
        return Answer(text=echo(prompt))

    provider.default = answer
    with pytest.raises(RebaseError, match=r"the quota is spent until noon\n.*are cached: run again to continue"):
        generate_all(cached(hosted(kind, provider.address), path), map(request, prompts(30)))
    assert len(cached_keys(path)) == 5


def test_equal_concurrent_requests_are_sent_once_and_one_may_be_cancelled(path: Path) -> None:
    async def run() -> tuple[Slow, Response | Failure]:
        teacher = Slow(at_once=5)
        async with cached(teacher, path).open() as session:
            first, second = (asyncio.create_task(session.generate(request("a"))) for _ in range(2))
            while not teacher.requests:
                await asyncio.sleep(0)
            first.cancel()
            teacher.filter.set()
            return teacher, await second

    teacher, answer = asyncio.run(run())
    assert answer.text == echo("a")
    assert teacher.prompts == ["a"]


def test_teacher_that_cannot_be_opened_is_tried_once(path: Path) -> None:
    class Closed(Echo):
        @asynccontextmanager
        async def open(self):
            self.opened += 1
            await asyncio.sleep(0.01)
            raise RebaseError("closed today")
            yield self

    teacher = Closed()
    with pytest.raises(RebaseError, match="closed today"):
        texts(teacher, path, prompts(50))
    assert teacher.opened == 1


# Before any work


def test_missing_key_stops_a_first_run_but_not_a_replay(
    path: Path, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    keyless = cached(hosted("anthropic", provider.address, key=None), path)
    with pytest.raises(RebaseError, match="ANTHROPIC_API_KEY"):
        keyless.check()
    assert not path.exists()

    generate_all(cached(hosted("anthropic", provider.address), path), map(request, prompts(3)))
    asked = len(provider.ledger)
    with caplog.at_level(logging.WARNING):
        keyless.check()
    assert "ANTHROPIC_API_KEY" in caplog.text
    assert texts_of(generate_all(keyless, map(request, prompts(3)))) == list(map(echo, prompts(3)))
    with pytest.raises(RebaseError, match="ANTHROPIC_API_KEY"):
        generate_all(keyless, [request("new")])
    assert len(provider.ledger) == asked


def test_right_key_needs_no_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cached(hosted("anthropic", "http://127.0.0.1:9"), path).check()
    assert not caplog.text
    assert not path.exists()


def test_local_teacher_that_cannot_work_is_an_error_even_with_cached_responses(path: Path) -> None:
    class Broken(Echo):
        def check(self) -> None:
            raise RebaseError("no weights")

    texts(Echo(), path, ["a"])
    with pytest.raises(RebaseError, match="no weights"):
        cached(Broken(), path).check()


def test_prices_are_those_of_hosted_models() -> None:
    table = PriceTable(as_of="2026-11-21", models={"openai": {MODEL: PRICE}})
    assert price_of(hosted("openai", "http://host"), table) == PRICE
    assert price_of(hosted("anthropic", "http://host"), table) is None
    assert price_of(Echo(), NO_PRICES) == Price(input=0, output=0)


# Batches that were left


def test_batches_that_were_left_are_warned_of_before_they_are_paid_for_again(
    path: Path, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = hosted("openai", provider.address)
    asked = request("a")
    with closing(ResponseCache(path)) as store:
        store.journal.add(
            Batch("t", "b", (teacher.key(asked),), datetime.now(UTC)), [asked], *identity("openai", provider.address)
        )
    generate_all(cached(teacher, path), [asked])
    assert f"1 batches of openai/{MODEL} were submitted but not collected" in caplog.text
    caplog.clear()
    generate_all(cached(teacher, path), [asked])
    assert "batches" not in caplog.text  # nothing is asked for
