"""Batches with both real SDKs: half the price, and never paid for twice, wherever a run is killed."""

import asyncio
import json
import logging
import multiprocessing
import os
import re
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import pytest

from rebase.errors import RebaseError
from rebase.teacher import anthropic, openai
from rebase.teacher import batches as batch
from rebase.teacher.batch_journal import Batch, BatchJournal
from rebase.teacher.batches import TRIES, BatchState, read_item
from rebase.teacher.budget import Budget, Price
from rebase.teacher.cached import CachedTeacher
from rebase.teacher.protocol import Failure, Request, Response, parse_response
from rebase.teacher.response_cache import ResponseCache
from rebase.teacher.settings import BudgetSettings
from tests.loopback import writing
from tests.scripted import NO_PRICES, generate_all
from tests.teacher.server import ANTHROPIC, KEY, OPENAI, Answer, Faults, Provider, _Missing, _Server
from tests.teacher.teachers import cached_keys, echo, hosted, identity, prompts, request, texts_of

PRICE = Price(input=100_000, output=200_000)  # the server counts 12 tokens in and 5 out: 2.2 dollars, by a batch 1.1

#: Processes that are forked from one which has imported all that takes long.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["anthropic", "openai", __name__])


def client(kind: str, address: str, path: Path, where: str, count: int, most: int, output: Path) -> None:
    """A run in a process of its own: asks by batches of ``most``, and kills itself where it is told to."""
    batch.FIRST_POLL = 0.02
    api = APIS[kind]
    api.most_requests = most
    look, put = api.state, BatchJournal.close

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async def die_waiting(*_: object) -> None:
        die()

    async def look_and_die(*arguments: object) -> BatchState:
        state = await look(*arguments)
        if not state.has_ended:
            die()
        return state

    def put_and_die(*arguments: object) -> None:
        put(*arguments)
        die()

    owner, name, instead = {
        "nowhere": (api, "most_requests", most),
        "before it is submitted": (api, "submit", die_waiting),
        "before its id is known": (BatchJournal, "set_id", die),
        "while it is worked on": (api, "state", look_and_die),
        "before its responses are stored": (BatchJournal, "close", die),
        "when its responses are stored": (BatchJournal, "close", put_and_die),
    }[where]
    setattr(owner, name, instead)
    answers = generate_all(batched(kind, address, path), map(request, prompts(count)))
    output.write_text("\n".join(texts_of(answers)))


def start(kind: str, provider: Provider, path: Path, where: str, count: int, most: int = 1000) -> tuple[Any, Path]:
    """Start a client; gives the process and the file that it writes its answers to."""
    output = Path(tempfile.mkdtemp(dir=path.parent)) / "output"
    process = PROCESSES.Process(target=client, args=(kind, provider.address, path, where, count, most, output))
    process.start()
    return process, output


def kill(kind: str, provider: Provider, path: Path, where: str, count: int, most: int = 1000) -> None:
    """A run that is killed on its way."""
    process, _ = start(kind, provider, path, where, count, most)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def run_two(kind: str, provider: Provider, path: Path, count: int, most: int = 1000) -> None:
    """Two runs at once, which must both end well."""
    clients = [start(kind, provider, path, "nowhere", count, most) for _ in range(2)]
    for process, output in clients:
        process.join(120)
        assert process.exitcode == 0
        assert output.read_text().splitlines() == list(map(echo, prompts(count)))


APIS = {ANTHROPIC: anthropic._MessageBatches, OPENAI: openai._FileBatches}
KILLS = (
    "before it is submitted",
    "before its id is known",
    "while it is worked on",
    "before its responses are stored",
    "when its responses are stored",
)


def batched(kind: str, address: str, path: Path, **budget: object) -> CachedTeacher:
    return CachedTeacher(hosted(kind, address), path, Budget(BudgetSettings(**budget), PRICE), NO_PRICES, batch=True)


Ask = Callable[[Iterable[Request]], list[Response | Failure]]


@pytest.fixture(params=[ANTHROPIC, OPENAI])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "responses.sqlite"


@pytest.fixture
def ask(kind: str, provider: Provider, path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Asks the teacher under test, with short waits."""
    monkeypatch.setattr(batch, "FIRST_POLL", 0.02)
    provider.batch_seconds = 0.1
    return lambda requests: generate_all(batched(kind, provider.address, path), requests)


def items(provider: Provider) -> list[str]:
    """The prompts of all items of batches that were worked on."""
    return [entry.prompt for entry in provider.ledger if entry.method == "BATCH"]


def submitted(provider: Provider) -> int:
    """How often a batch was created."""
    paths = ("/v1/messages/batches", "/v1/batches")
    return sum(entry.method == "POST" and entry.path in paths for entry in provider.ledger)


def billed_once(provider: Provider, count: int) -> bool:
    ids = Counter(entry.request_id for entry in provider.billed())
    return len(ids) == count and set(ids.values()) == {1}


# From end to end


def test_responses_are_in_order_at_half_the_price_and_cached(
    ask: Ask, kind: str, provider: Provider, path: Path
) -> None:
    answers = ask(map(request, prompts(30)))
    assert texts_of(answers) == list(map(echo, prompts(30)))
    assert all(answer.batch and answer.dollars == pytest.approx(1.1) for answer in answers)
    assert [answer.key for answer in answers] == [
        request(prompt).key(*identity(kind, provider.address)) for prompt in prompts(30)
    ]
    assert sorted(items(provider)) == sorted(prompts(30))
    assert submitted(provider) == 1
    assert not any(
        entry.method == "POST" and entry.path.endswith(("messages", "completions")) for entry in provider.ledger
    )
    with closing(ResponseCache(path)) as store:
        assert all(store.get(answer.key).batch for answer in answers)
        assert store.journal.open_batches(*identity(kind, provider.address)) == []
        assert store.journal.batch_ids()
    assert all(KEY.encode() not in file.read_bytes() for file in path.parent.iterdir())

    calls = len(provider.ledger)
    assert texts_of(ask(map(request, prompts(30)))) == texts_of(answers)
    assert len(provider.ledger) == calls


def test_requests_of_a_batch_are_those_of_single_ones(ask: Ask, kind: str, provider: Provider, path: Path) -> None:
    ask([request("a")])
    single = CachedTeacher(
        hosted(kind, provider.address), path.with_name("other"), Budget(BudgetSettings(), PRICE), NO_PRICES
    )
    generate_all(single, [request("a")])
    by_batch, alone = provider.asked("a")
    assert by_batch.body == alone.body


def test_many_requests_are_split_by_their_number(ask: Ask, kind: str, provider: Provider, monkeypatch) -> None:
    monkeypatch.setattr(APIS[kind], "most_requests", 4)
    assert texts_of(ask(map(request, prompts(10)))) == list(map(echo, prompts(10)))
    assert submitted(provider) == 3
    sizes = Counter(entry.batch for entry in provider.ledger if entry.batch)
    assert sorted(sizes.values()) == [2, 4, 4]


def test_large_requests_are_split_by_their_bytes(ask: Ask, kind: str, provider: Provider, monkeypatch) -> None:
    monkeypatch.setattr(APIS[kind], "most_bytes", 10_000)
    provider.default = lambda prompt: Answer(text=echo("a"))
    long = [f"{number} ".ljust(500, "é") for number in range(8)]  # 3,000 bytes each, as JSON
    ask(map(request, [*long, "short"]))
    by_batch: Counter[str] = Counter()
    for entry in provider.ledger:
        if entry.batch:
            by_batch[entry.batch] += len(json.dumps(entry.body))
    assert len(by_batch) == submitted(provider) >= 3
    assert max(by_batch.values()) <= 10_000
    assert set(items(provider)) == {*long, "short"}


def test_invalid_responses_are_repaired_in_another_batch(ask: Ask, provider: Provider) -> None:
    provider.plan("prompt 1", Answer(text="no json"))
    answers = ask(map(request, prompts(4)))
    repair = next(entry.prompt for entry in provider.ledger if "cannot be used" in entry.prompt)
    assert answers[1].text == echo(repair)
    assert answers[1].dollars == pytest.approx(2 * 1.1)
    assert submitted(provider) == 2


def test_half_surrogates_are_no_trouble(ask: Ask, provider: Provider) -> None:
    provider.plan("a", Answer(text='{"echo": "\ud800"}'))
    (answer,) = ask([request("a")])
    assert parse_response(answer.text) == {"echo": "\ufffd"}


# Items that go wrong


def test_expired_items_are_submitted_again(ask: Ask, provider: Provider) -> None:
    provider.faults = Faults(batch_expired=0.3, seed=1)
    answers = ask(map(request, prompts(40)))
    assert {answer.text for answer in answers if isinstance(answer, Response)} <= set(map(echo, prompts(40)))
    assert sum(isinstance(answer, Response) for answer in answers) >= 36
    assert all(answer.reason.endswith(f", {TRIES} times") for answer in answers if isinstance(answer, Failure))
    assert 1 < submitted(provider) <= TRIES
    assert max(Counter(entry.request_id for entry in provider.billed()).values()) == 1


def test_items_that_always_expire_fail(ask: Ask, provider: Provider) -> None:
    provider.faults = Faults(batch_expired=1.0)
    answers = ask(map(request, prompts(3)))
    assert all(isinstance(answer, Failure) and "expired" in answer.reason for answer in answers)
    assert all(answer.reason.endswith(f", {TRIES} times") and answer.kind == "failed" for answer in answers)
    assert submitted(provider) == TRIES


def test_passing_errors_are_tried_again_and_lasting_ones_are_not(ask: Ask, provider: Provider, path: Path) -> None:
    provider.plan("prompt 1", Answer(status=500, message="oops"))
    provider.plan("prompt 2", Answer(status=400, message="too strange"))
    answers = ask(map(request, prompts(4)))
    assert [isinstance(answer, Response) for answer in answers] == [True, True, False, True]
    assert "too strange" in answers[2].reason
    assert answers[2].kind == "failed"
    assert Counter(items(provider))["prompt 1"] == 2
    assert Counter(items(provider))["prompt 2"] == 1
    assert len(cached_keys(path)) == 3


def test_duplicate_lines_count_once(ask: Ask, provider: Provider) -> None:
    provider.faults = Faults(batch_duplicated=1.0)
    assert texts_of(ask(map(request, prompts(20)))) == list(map(echo, prompts(20)))
    assert billed_once(provider, 20)


def test_failed_batch_is_an_error_with_the_providers_message(
    provider: Provider, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "FIRST_POLL", 0.02)
    teacher = batched(OPENAI, provider.address, path)
    wrong = replace(teacher, teacher=replace(teacher.teacher, model="no-model"))
    with pytest.raises(RebaseError, match=r"(?s)The batch \S+ of openai/no-model failed: .*model_not_found"):
        generate_all(wrong, [request("a")])
    with closing(ResponseCache(path)) as store:
        assert store.journal.open_batches(OPENAI, "no-model", f"{provider.address}/v1") == []
    assert not provider.billed()


def test_wrong_key_and_no_server_are_errors(kind: str, provider: Provider, path: Path, monkeypatch) -> None:
    monkeypatch.setattr(batch, "FIRST_POLL", 0.02)
    teacher = batched(kind, provider.address, path)
    with pytest.raises(RebaseError, match="status 401"):
        generate_all(replace(teacher, teacher=replace(teacher.teacher, api_key="sk-wrong")), [request("a")])
    with closing(ResponseCache(path)) as store:
        assert store.journal.open_batches(*identity(kind, provider.address)) == []
    assert texts_of(generate_all(teacher, [request("a")])) == [echo("a")]


# Calls that go wrong


@pytest.mark.parametrize("odd", [b"", b'"odd"', b"{}", b"[" * 100_000, b'{"id": 1, "data": 2, "status": []}'])
def test_provider_whose_calls_give_no_batch_is_an_error(kind: str, path: Path, monkeypatch, odd: bytes) -> None:
    monkeypatch.setattr(batch, "FIRST_POLL", 0.01)
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(odd)}\r\n\r\n"
    with (
        writing(lambda _, stream: stream.write(head.encode() + odd)) as address,
        pytest.raises(RebaseError, match="run again"),
    ):
        generate_all(batched(kind, address, path), [request("a")])


def test_call_that_drips_is_lost_and_made_again(kind: str, provider: Provider, path: Path, monkeypatch) -> None:
    monkeypatch.setattr(batch, "FIRST_POLL", 0.02)
    monkeypatch.setattr(batch, "_TIMEOUTS", 1)
    state, lost = APIS[kind].state, [True, True]

    async def drip(self: Any, batch_id: str) -> BatchState:
        await asyncio.sleep(60 if lost and lost.pop() else 0)
        return await state(self, batch_id)

    monkeypatch.setattr(APIS[kind], "state", drip)
    teacher = batched(kind, provider.address, path)
    teacher = replace(teacher, teacher=replace(teacher.teacher, timeout=1.0))
    assert texts_of(generate_all(teacher, [request("a")])) == [echo("a")]
    assert not lost


def test_batch_that_never_ends_is_an_error_and_the_next_run_collects_it(
    ask: Ask, provider: Provider, monkeypatch, caplog
) -> None:
    provider.batch_seconds = 2.0
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, logger="rebase"):
        patch.setattr(batch, "LONGEST_WAIT", 0.5)
        patch.setattr(batch, "_REPORT_SECONDS", 0.2)
        with pytest.raises(RebaseError, match=r"No batch of .* are in the journal: run again to continue"):
            ask([request("a")])
    assert "No batch has ended for 0 minutes; the next try is in 0 seconds." in caplog.text
    assert texts_of(ask([request("a")])) == [echo("a")]
    assert items(provider) == ["a"]


def test_batch_with_a_lost_response_is_found(ask: Ask, provider: Provider) -> None:
    provider.faults = Faults(batch_lost=1.0)
    assert texts_of(ask(map(request, prompts(5)))) == list(map(echo, prompts(5)))
    assert submitted(provider) == 1
    assert billed_once(provider, 5)


@pytest.mark.parametrize("seed", range(3))
def test_calls_that_fail_now_and_then_are_made_again(ask: Ask, provider: Provider, seed: int) -> None:
    provider.faults = Faults(batch_calls=0.3, seed=seed, retry_after=0.01, hang_seconds=0.01)
    assert texts_of(ask(map(request, prompts(10)))) == list(map(echo, prompts(10)))
    assert billed_once(provider, 10)


# Kills


@pytest.mark.parametrize("where", KILLS)
def test_killed_run_finds_its_batch_again(ask: Ask, kind: str, provider: Provider, path: Path, where: str) -> None:
    provider.batch_seconds = 0.3
    kill(kind, provider, path, where, 8)

    assert texts_of(ask(map(request, prompts(8)))) == list(map(echo, prompts(8)))
    assert billed_once(provider, 8)
    assert submitted(provider) == 1
    with closing(ResponseCache(path)) as store:
        assert store.journal.open_batches(*identity(kind, provider.address)) == []


def test_run_killed_among_several_batches_submits_the_rest(ask: Ask, kind: str, provider: Provider, path: Path) -> None:
    kill(kind, provider, path, "before its responses are stored", 8, most=3)
    # More is asked for now: only what was not submitted is.
    assert texts_of(ask(map(request, prompts(12)))) == list(map(echo, prompts(12)))
    assert billed_once(provider, 12)
    assert submitted(provider) == 4


def test_batches_of_other_requests_are_left_open(ask: Ask, kind: str, provider: Provider, path: Path) -> None:
    foreign = request("another run's")
    with closing(ResponseCache(path)) as store:
        entry = Batch("token", "unknown", (foreign.key(*identity(kind, provider.address)),), datetime.now(UTC))
        store.journal.add(entry, [foreign], *identity(kind, provider.address))
    assert texts_of(ask([request("a")])) == [echo("a")]
    with closing(ResponseCache(path)) as store:
        assert [found.token for found in store.journal.open_batches(*identity(kind, provider.address))] == ["token"]


def test_batch_that_the_provider_does_not_know_any_more_is_submitted_again(
    ask: Ask, kind: str, provider: Provider, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = request("a")
    with closing(ResponseCache(path)) as store:
        entry = Batch("token", "unknown", (asked.key(*identity(kind, provider.address)),), datetime.now(UTC))
        store.journal.add(entry, [asked], *identity(kind, provider.address))
    assert texts_of(ask([asked])) == [echo("a")]
    assert "batch unknown no longer exists at the provider" in caplog.text
    assert submitted(provider) == 1


def test_batch_that_the_provider_never_knows_is_not_submitted_without_end(
    ask: Ask, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(*_: object) -> NoReturn:
        raise _Missing("no such batch")

    monkeypatch.setattr(_Server, "find", forget)
    (answer,) = ask([request("a")])
    assert isinstance(answer, Failure)
    assert re.fullmatch(r"the provider does not know batch \S+, 3 times", answer.reason)
    assert submitted(provider) == 3


def test_item_that_is_no_response_is_a_failure() -> None:
    broken = read_item("k", hosted(OPENAI, "http://host").read, {"choices": []})
    assert isinstance(broken, Failure)
    assert broken.reason == "not a response: {'choices': []}"


def test_two_processes_with_one_cache_submit_each_request_once(kind: str, provider: Provider, path: Path) -> None:
    provider.batch_seconds = 0.5
    run_two(kind, provider, path, 10, most=4)
    assert billed_once(provider, 10)
    assert submitted(provider) == 3


@pytest.mark.parametrize("where", ["before it is submitted", "before its id is known"])
def test_two_processes_recover_a_lost_batch_once(kind: str, provider: Provider, path: Path, where: str) -> None:
    provider.batch_seconds = 0.5
    kill(kind, provider, path, where, 6)
    run_two(kind, provider, path, 6)
    assert billed_once(provider, 6)
    assert submitted(provider) == 1


# The end


def test_early_close_waits_for_no_batch_and_the_next_run_collects_it(
    ask: Ask, kind: str, provider: Provider, path: Path
) -> None:
    provider.batch_seconds = 3600

    async def run() -> None:
        async with batched(kind, provider.address, path).open() as session:
            tasks = [asyncio.create_task(session.generate(request(prompt))) for prompt in prompts(5)]
            while not submitted(provider):
                await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()

    asyncio.run(asyncio.wait_for(run(), 30))
    with closing(ResponseCache(path)) as store:
        (left,) = store.journal.open_batches(*identity(kind, provider.address))
    assert left.batch_id
    assert len(left.keys) == 5


def test_budget_holds_for_batches_too(kind: str, provider: Provider, path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(batch, "FIRST_POLL", 0.02)
    provider.batch_seconds = 0.05
    with caplog.at_level(logging.INFO):
        answers = generate_all(batched(kind, provider.address, path, max_requests=4), map(request, prompts(6)))
    assert [getattr(answer, "kind", "response") for answer in answers] == ["response"] * 4 + ["budget"] * 2
    assert billed_once(provider, 4)
    assert "4 requests submitted" in caplog.text


def test_worst_case_of_a_batch_is_put_aside_at_its_price(
    kind: str, provider: Provider, path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(batch, "FIRST_POLL", 0.02)
    provider.batch_seconds = 0.05
    one = request("prompt 0")
    worst = PRICE.dollars(len(one.to_json()) + 500, 100, batch=True)
    answers = generate_all(batched(kind, provider.address, path, budget_usd=worst * 2), map(request, prompts(5)))
    # Two fit at their worst; they cost little, and the others come in the batches after.
    assert texts_of(answers) == list(map(echo, prompts(5)))
    assert submitted(provider) >= 3 - 1
    assert sum(answer.dollars for answer in answers) <= 2 * worst
