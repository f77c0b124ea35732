"""The budget: a bound that holds whatever comes, checked before each request."""

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rebase.errors import RebaseError
from rebase.teacher.budget import FREE, Budget, Price, PriceTable, Usage, progress
from rebase.teacher.cached import CachedTeacher
from rebase.teacher.protocol import Failure, Request, Response, Sampling
from rebase.teacher.settings import BudgetSettings
from tests.scripted import NO_PRICES, cached, generate_all
from tests.teacher.server import MODEL, Provider
from tests.teacher.teachers import Candid, Echo, echo, hosted, prompts, request, texts_of

PRICE = Price(input=1_000_000, output=2_000_000)  # dollars a token: 1 in, 2 out
#: What a request of these tests costs at most, by ``PRICE``.
WORST = len(request("prompt 0").to_json()) + 500 + 2 * 100


class Spender(Candid):
    """Its responses take as many tokens as ``spend`` says, in and out, or fail where it says None."""

    def __init__(self, spend: Callable[[Request], tuple[int, int] | None]) -> None:
        super().__init__(lambda asked: echo("a"))
        self.spend = spend
        self.max_concurrency = self.most_in_flight = 0

    async def generate(self, asked: Request) -> Response | Failure:
        self.requests.append(asked)
        self.max_concurrency += 1
        self.most_in_flight = max(self.max_concurrency, self.most_in_flight)
        for _ in range(len(self.requests) * 7 % 5 + 1):
            await asyncio.sleep(0)
        self.max_concurrency -= 1
        key, tokens = asked.key(self.provider, self.model), self.spend(asked)
        return Response(key, echo("a"), "stop", *tokens) if tokens else Failure(key, "no luck")


def bought(answers: list[Response | Failure]) -> list[Response]:
    return [answer for answer in answers if isinstance(answer, Response)]


def kinds(answers: list[Response | Failure]) -> list[str]:
    return ["response" if isinstance(answer, Response) else answer.kind for answer in answers]


def full(asked: Request) -> tuple[int, int]:
    """The most tokens that can come."""
    return len(asked.to_json()) + 500, asked.sampling.max_tokens


def keys_of(requests: list[Request]) -> list[str]:
    return [asked.key("", "") for asked in requests]


# The bound

spent = st.one_of(st.none(), st.tuples(st.floats(0, 1), st.floats(0, 1)))


@given(
    shares=st.lists(spent, max_size=25),
    budget=st.floats(1, 12),
    most=st.one_of(st.none(), st.integers(1, 25)),
    first=st.integers(0, 25),
    lengths=st.lists(st.integers(1, 3000), min_size=25, max_size=25),
)
def test_budget_holds_for_any_responses_in_one_run_or_two(
    tmp_path_factory: pytest.TempPathFactory,
    shares: list[tuple[float, float] | None],
    budget: float,
    most: int | None,
    first: int,
    lengths: list[int],
) -> None:
    path = tmp_path_factory.mktemp("budget") / "responses.sqlite"
    dollars = budget * WORST
    requests = [request(f"{number} ".ljust(length, "é")) for number, length in enumerate(lengths[: len(shares)])]
    by_request = dict(zip(keys_of(requests), shares, strict=True))

    def spend(asked: Request) -> tuple[int, int] | None:
        share = by_request[asked.key("", "")]
        return share and (int(share[0] * full(asked)[0]), int(share[1] * full(asked)[1]))

    # Begun, ended in the middle, and begun again: the bound is that of both.
    teacher, kept = Spender(spend), {"budget_usd": dollars, "max_requests": most}
    generate_all(cached(teacher, path, PRICE, **kept), requests[:first])
    answers = generate_all(cached(teacher, path, PRICE, **kept), requests)

    responses = bought(answers)
    assert sum(response.dollars for response in responses) <= dollars * (1 + 1e-9)
    assert len(responses) <= (most or math.inf)
    assert len({asked.key("", "") for asked in teacher.requests if spend(asked)}) == len(responses)
    # What was left out did not fit, or failed.
    left = dollars - sum(response.dollars for response in responses)
    for asked, answer in zip(requests, answers, strict=True):
        if isinstance(answer, Failure) and answer.kind == "budget":
            worst = PRICE.dollars(*full(asked))
            assert worst > left * (1 - 1e-9) or len(responses) == most


def test_worst_case_is_put_aside_before_a_request_is_sent() -> None:
    too_small = Spender(lambda asked: (1, 1))
    answers = generate_all(cached(too_small, price=PRICE, budget_usd=WORST - 1), [request("prompt 0")])
    assert kinds(answers) == ["budget"]
    assert not too_small.requests
    enough = Spender(lambda asked: (1, 1))
    assert kinds(generate_all(cached(enough, price=PRICE, budget_usd=WORST), [request("prompt 0")])) == ["response"]


def test_worst_case_counts_letters_that_take_several_tokens_and_thoughts() -> None:
    async def aside(asked: Request, thinking: int, *, batch: bool = False) -> float | None:
        return await Budget(BudgetSettings(), PRICE).reserve(asked, thinking, batch=batch)

    plain = asyncio.run(aside(request("aaaa"), 0))
    assert asyncio.run(aside(request("語語語語"), 0)) >= plain + 4 * (3 - 1)
    assert asyncio.run(aside(request("aaaa"), 50)) == plain + 2 * 50
    assert asyncio.run(aside(request("aaaa", sampling=Sampling(0.7, 200)), 0)) == plain + 2 * 100
    assert asyncio.run(aside(request("aaaa"), 0, batch=True)) == plain / 2


def test_requests_wait_while_open_ones_may_leave_room() -> None:
    # Three fit at their worst, but each costs next to nothing: all get their turn.
    teacher = Spender(lambda asked: (1, 1))
    answers = generate_all(cached(teacher, price=PRICE, budget_usd=3 * WORST + 60), map(request, prompts(10)))
    assert kinds(answers) == ["response"] * 10
    assert teacher.most_in_flight == 3


def test_budget_ends_when_it_is_spent() -> None:
    teacher = Spender(full)
    answers = generate_all(cached(teacher, price=PRICE, budget_usd=3 * WORST + 60), map(request, prompts(10)))
    assert kinds(answers) == ["response"] * 3 + ["budget"] * 7
    assert "the budget is reached (teacher.budget_usd" in answers[-1].reason
    assert "3 responses so far" in answers[-1].reason


def test_failures_cost_nothing() -> None:
    teacher = Spender(lambda asked: None if "prompt 0" in asked.messages[0].content else full(asked))
    answers = generate_all(cached(teacher, price=PRICE, budget_usd=2 * WORST, max_requests=2), map(request, prompts(4)))
    assert kinds(answers) == ["failed", "response", "response", "budget"]


def test_rounding_errors_block_no_request() -> None:
    price = Price(input=0.1, output=0.7)
    large = request("x" * 10_000)

    async def run() -> None:
        for limit in range(1, 50):
            budget = Budget(BudgetSettings(budget_usd=price.dollars(*full(large))), price)
            small = [request("x" * (1_500 + 100 * step), sampling=Sampling(0.7, limit * step)) for step in (1, 3, 5)]
            for aside in [await budget.reserve(one, 0, batch=False) for one in small]:
                budget.release(aside)
            # It fits exactly, and nothing else is on its way.
            budget.release(await asyncio.wait_for(budget.reserve(large, 0, batch=False), 5))

    asyncio.run(run())


def test_a_stage_in_another_thread_gets_what_the_first_one_releases() -> None:
    budget = Budget(BudgetSettings(budget_usd=1.5 * WORST), PRICE)
    waits = threading.Event()

    async def first() -> None:
        reserved = await budget.reserve(request("prompt 0"), 0, batch=False)
        while not budget._waiting:
            await asyncio.sleep(0.001)
        waits.set()
        budget.release(reserved)

    async def second() -> float | None:
        return await asyncio.wait_for(budget.reserve(request("prompt 1"), 0, batch=False), 60)

    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(asyncio.run, first())
        while not budget._reserved_requests:
            time.sleep(0.001)
        other = threads.submit(asyncio.run, second())
        one.result(60)
        assert other.result(60) is not None
    assert waits.is_set()


@pytest.mark.parametrize("most", [1, 3])
def test_requests_never_exceed_their_number(tmp_path: Path, most: int) -> None:
    teacher = Echo()
    answers = generate_all(cached(teacher, tmp_path / "r.sqlite", max_requests=most), map(request, prompts(10)))
    assert kinds(answers) == ["response"] * most + ["budget"] * (10 - most)
    assert len(teacher.requests) == most
    assert f"teacher.max_requests {most}" in answers[-1].reason


def test_repairs_are_within_the_budget(tmp_path: Path) -> None:
    def say(asked: Request) -> str:
        return echo("right") if len(asked.messages) > 1 else "no json"

    path, teacher = tmp_path / "r.sqlite", Candid(say)
    answers = generate_all(cached(teacher, path, max_requests=3), map(request, prompts(2)))
    assert len(teacher.requests) == 3
    assert kinds(answers) == ["response", "budget"]
    again = generate_all(cached(teacher, path, max_requests=4), map(request, prompts(2)))
    assert texts_of(again) == [echo("right")] * 2
    assert len(teacher.requests) == 4


# At the bound


def test_stop_is_an_error_that_says_how_to_continue(tmp_path: Path) -> None:
    path, teacher = tmp_path / "r.sqlite", Echo()
    with pytest.raises(
        RebaseError, match=r"Stopped: the budget is reached \(teacher.max_requests 4\): 4 responses so far"
    ):
        generate_all(cached(teacher, path, max_requests=4, on_budget="stop"), map(request, prompts(10)))
    assert len(teacher.requests) == 4
    with pytest.raises(RebaseError, match="run again with a larger budget to continue"):
        generate_all(cached(teacher, path, max_requests=4, on_budget="stop"), map(request, prompts(10)))
    assert len(teacher.requests) == 4  # all of them are stored, and they count


def test_larger_budget_buys_only_the_rest(tmp_path: Path) -> None:
    path, first, second, third = tmp_path / "r.sqlite", Echo(), Echo(), Echo()
    asked = list(map(request, prompts(10)))
    generate_all(cached(first, path, max_requests=4), asked)
    answers = generate_all(cached(second, path, max_requests=7), asked)
    assert kinds(answers) == ["response"] * 7 + ["budget"] * 3
    assert second.prompts == prompts(10)[4:7]
    assert kinds(generate_all(cached(third, path), asked)) == ["response"] * 10
    assert third.prompts == prompts(10)[7:]


def test_cached_responses_count_with_their_original_price(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    generate_all(cached(Spender(full), path, PRICE), map(request, prompts(3)))
    teacher = Spender(full)
    answers = generate_all(cached(teacher, path, PRICE, budget_usd=4 * WORST + 60), map(request, prompts(10)))
    assert kinds(answers) == ["response"] * 4 + ["budget"] * 6
    assert len(teacher.requests) == 1


def test_cached_responses_are_used_even_above_the_budget(tmp_path: Path) -> None:
    path, teacher = tmp_path / "r.sqlite", Spender(full)
    generate_all(cached(Spender(full), path, PRICE), map(request, prompts(3)))
    answers = generate_all(cached(teacher, path, PRICE, budget_usd=WORST), map(request, prompts(5)))
    assert kinds(answers) == ["response"] * 3 + ["budget"] * 2
    assert not teacher.requests


def test_budget_is_that_of_all_stages(tmp_path: Path) -> None:
    teacher, budget = Echo(), Budget(BudgetSettings(max_requests=5), FREE)
    first, second = (CachedTeacher(teacher, tmp_path / "r.sqlite", budget, NO_PRICES) for _ in range(2))
    assert kinds(generate_all(first, map(request, prompts(3)))) == ["response"] * 3
    asked = [request(prompt, system="Another stage.") for prompt in prompts(3)]
    assert kinds(generate_all(second, asked)) == ["response", "response", "budget"]


# Prices


def test_budget_in_dollars_without_a_price_is_an_error_before_any_request(tmp_path: Path, provider: Provider) -> None:
    teacher = cached(hosted("openai", provider.address), tmp_path / "r.sqlite", price=None, budget_usd=1)
    with pytest.raises(
        RebaseError, match=f"budget_usd cannot be kept: no price for openai/{MODEL} in the table of 2026"
    ):
        teacher.check()
    assert not provider.ledger
    cached(hosted("openai", provider.address), tmp_path / "r.sqlite", price=None, max_requests=1).check()


def test_unknown_price_is_reported(tmp_path: Path) -> None:
    teacher = cached(Echo(), tmp_path / "r.sqlite", price=None)

    async def run() -> tuple[Response | Failure, dict[str, Any]]:
        async with teacher.open() as session:
            return await session.generate(request("a")), session.usage.summary()

    answer, usage = asyncio.run(run())
    assert answer.dollars is None
    assert usage["dollars"] is usage["used_dollars"] is None
    assert teacher.price_in_words.startswith("no price for scripted/test in the table of 2026-11-21")


def test_prices_by_provider_and_model() -> None:
    table = PriceTable(as_of="2026-11-21", models={"openai": {"gpt": Price(input=0.1, output=2.5)}})
    price = table.find("openai", "gpt")
    assert price.dollars(1_000_000, 2_000_000) == pytest.approx(5.1)
    assert price.dollars(1_000_000, 2_000_000, batch=True) == pytest.approx(2.55)
    assert table.find("openai", "gpt-2") is None
    assert table.find("anthropic", "gpt") is None
    teacher = cached(Echo(), price=price)
    assert teacher.price_in_words == "$0.1 / $2.5 per million tokens in / out (table of 2026-11-21)"


@pytest.mark.parametrize("wrong", [{"budget_usd": 0}, {"max_requests": 0}, {"budget_usd": -1}, {"on_budget": "ask"}])
def test_wrong_settings_are_errors(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        BudgetSettings(**wrong)


# What was used


def test_usage_separates_new_from_cached_responses() -> None:
    usage = Usage()
    price = Price(input=1, output=10)
    for seconds in range(1, 101):
        usage.count(Response("", "", "stop", 1000, 100, seconds=seconds), price, is_cached=False)
    usage.count(Response("", "", "stop", 1000, 100, seconds=9000), price, is_cached=True)
    usage.count(Response("", "", "stop", 1000, 100, batch=True), price, is_cached=True)
    usage.count(Failure("", "no luck"), price, is_cached=False)
    usage.count(Failure("", "reached", "budget"), price, is_cached=False)

    found = usage.summary()
    assert (found["used"], found["responses"], found["cached"]) == (102, 100, 2)
    assert (found["failed"], found["over_budget"]) == (1, 1)
    assert (found["input_tokens"], found["output_tokens"]) == (100_000, 10_000)
    assert found["dollars"] == pytest.approx(100 * 0.002)
    assert found["used_dollars"] == pytest.approx(101.5 * 0.002)
    assert 49 <= found["p50_seconds"] <= 51
    assert 94 <= found["p95_seconds"] <= 96
    assert found["responses_per_minute"] > 0


def test_usage_of_nothing() -> None:
    found = Usage().summary()
    assert (found["used"], found["dollars"], found["p50_seconds"], found["responses_per_minute"]) == (0, 0, None, None)


def test_progress_shows_rejections_and_dollars() -> None:
    assert progress(3, 1, 10, Usage()) == "rejected 25%"
    assert progress(0, 0, 10, Usage(dollars=0.05)) == "rejected 0%, $0.0500 of about $0.50"
