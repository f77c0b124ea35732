"""Rate limiting: every limit is kept, the provider's waits are obeyed, and concurrency adapts."""

import asyncio
from collections import deque
from collections.abc import Mapping
from contextlib import AsyncExitStack
from itertools import islice, pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rebase.teacher import rate_limits
from rebase.teacher.rate_limits import (
    BURST_SECONDS,
    FIRST_CONCURRENCY,
    USED_SHARE,
    Bucket,
    Concurrency,
    Kind,
    RateLimiter,
    cost_of,
    read_limits,
)


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The limiter's sleeps take no time; they move this clock."""
    clock, sleep = Clock(), asyncio.sleep

    async def moved(seconds: float) -> None:
        await sleep(0)
        clock.now += seconds + 1e-9

    monkeypatch.setattr(rate_limits.asyncio, "sleep", moved)
    return clock


# Buckets


@given(
    st.floats(1, 100_000),
    st.lists(st.tuples(st.floats(0, 20), st.floats(0, 3)), min_size=1, max_size=60),
)
def test_no_interval_lets_through_more_than_flows_in_and_the_bucket_holds(
    per_minute: float, asked: list[tuple[float, float]]
) -> None:
    rate = per_minute * USED_SHARE / 60
    capacity = max(1.0, rate * BURST_SECONDS)
    now = 0.0
    bucket = Bucket(per_minute, now)
    taken: list[tuple[float, float]] = []
    for pause, share in asked:
        now += pause
        amount = share * capacity  # some more than it can hold
        now += bucket.wait(amount, now)
        bucket.take(amount)
        taken.append((now, amount))
    for first, (begin, _) in enumerate(taken):
        total = 0.0
        for end, amount in taken[first:]:
            # What is more than the bucket holds passes when it is full, and is worked off afterward.
            assert total + min(amount, capacity) <= rate * (end - begin) + capacity * (1 + 1e-6)
            total += amount


@given(st.floats(1, 100_000))
def test_a_bucket_wastes_nothing(per_minute: float) -> None:
    bucket, now = Bucket(per_minute, 0.0), 0.0
    for _ in range(100):
        now += bucket.wait(1, now)
        bucket.take(1)
    rate = per_minute * USED_SHARE / 60
    beyond = 100 - max(1.0, rate * BURST_SECONDS)
    assert now <= max(0.0, beyond) / rate * 1.001 + 1e-6


def test_what_is_put_back_is_there_again_but_never_more_than_the_bucket_holds() -> None:
    bucket = Bucket(600, 0.0)
    assert bucket.wait(9, 0.0) == 0
    bucket.take(9)
    assert bucket.wait(9, 0.0) > 0
    bucket.take(-9)
    assert bucket.wait(9, 0.0) == 0
    bucket.take(-1000)
    bucket.take(9)
    assert bucket.wait(9, 0.0) > 0


# Headers

ANTHROPIC = {
    "anthropic-ratelimit-requests-limit": "4000",
    "anthropic-ratelimit-requests-remaining": "3999",
    "anthropic-ratelimit-requests-reset": "2026-11-21T10:00:00Z",
    "anthropic-ratelimit-input-tokens-limit": "2000000",
    "anthropic-ratelimit-input-tokens-remaining": "1999000",
    "anthropic-ratelimit-output-tokens-limit": "400000",
    "anthropic-ratelimit-output-tokens-remaining": "399000",
    "anthropic-ratelimit-tokens-limit": "2400000",  # the sum: not one of the limits
    "anthropic-ratelimit-tokens-remaining": "2398000",
}
OPENAI = {
    "x-ratelimit-limit-requests": "5000",
    "x-ratelimit-remaining-requests": "4999",
    "x-ratelimit-reset-requests": "12ms",
    "x-ratelimit-limit-tokens": "4000000",
    "x-ratelimit-remaining-tokens": "3999000",
}


def test_headers_of_both_providers() -> None:
    assert read_limits(ANTHROPIC) == {
        "requests": (4000, 3999),
        "input_tokens": (2_000_000, 1_999_000),
        "output_tokens": (400_000, 399_000),
    }
    assert read_limits(OPENAI) == {"requests": (5000, 4999), "tokens": (4_000_000, 3_999_000)}
    assert read_limits({}) == {}


@pytest.mark.parametrize("garbage", ["", "many", "1,000", "-1", "0", "nan", "inf", "-inf", "1e999", "0x10", "12ms"])
@pytest.mark.parametrize("name", ["anthropic-ratelimit-requests-limit", "x-ratelimit-limit-tokens"])
def test_a_limit_that_is_none_is_passed_over(garbage: str, name: str) -> None:
    kind = "requests" if "anthropic" in name else "tokens"
    headers = ANTHROPIC if "anthropic" in name else OPENAI
    found = read_limits({**headers, name: garbage})
    assert found == {other: said for other, said in read_limits(headers).items() if other != kind}


@given(st.sampled_from([*ANTHROPIC, *OPENAI]), st.text() | st.floats().map(str))
@example("anthropic-ratelimit-requests-remaining", "-inf")
@example("anthropic-ratelimit-requests-remaining", "nan")
@example("x-ratelimit-limit-requests", "inf")
def test_no_header_stops_the_limiter_for_ever(name: str, value: str) -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    limiter.update(200, {**ANTHROPIC, **OPENAI, name: value}, {})
    limits = {kind: bucket.per_minute for kind, bucket in limiter.buckets.items()}
    assert set(limits) <= {"requests", "input_tokens", "output_tokens", "tokens"}
    assert all(0 < limit < float("inf") for limit in limits.values())


# The limiter


def limited(clock: Clock, **limits: int) -> RateLimiter:
    """A limiter that has read these limits per minute, none of which is used up."""
    limiter = RateLimiter(clock)
    for kind, limit in limits.items():
        name = kind.replace("_", "-")
        headers = {f"anthropic-ratelimit-{name}-{part}": str(limit) for part in ("limit", "remaining")}
        limiter.update(200, headers, {})
    return limiter


async def pass_all(limiter: RateLimiter, clock: Clock, cost: Mapping[Kind, float], number: int) -> list[float]:
    """When each of the requests passes, asked for at once."""

    async def one() -> float:
        await limiter.acquire(cost)
        return clock.now

    return list(await asyncio.gather(*(one() for _ in range(number))))


def check_rate(times: list[float], per_minute: float, amount: float = 1.0) -> None:
    """Over the whole, no more passes than is allowed, and hardly less."""
    rate = per_minute * USED_SHARE / 60
    capacity = max(amount, rate * BURST_SECONDS)
    seconds, total = times[-1] - times[0], (len(times) - 1) * amount
    assert total <= rate * seconds + capacity + 1e-3
    assert total >= 0.98 * rate * seconds
    assert times == sorted(times)


def test_all_limits_hold_and_the_lowest_decides(clock: Clock) -> None:
    async def main() -> None:
        limiter = limited(clock, requests=6000, input_tokens=60_000, output_tokens=5_000)
        times = await pass_all(limiter, clock, cost_of(100, 20), 200)
        check_rate(times, 5_000, 20)

    asyncio.run(main())


def test_a_request_larger_than_a_minute_of_tokens_passes_all_the_same(clock: Clock) -> None:
    async def main() -> None:
        times = await pass_all(limited(clock, input_tokens=600), clock, cost_of(1200), 3)
        assert times[1] - times[0] == pytest.approx(120, rel=0.02)
        assert times[2] - times[1] == pytest.approx(120, rel=0.02)

    asyncio.run(main())


def test_without_limits_all_pass_at_once(clock: Clock) -> None:
    assert set(asyncio.run(pass_all(RateLimiter(clock), clock, cost_of(10**9), 50))) == {1000.0}


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry-after": "30"}, 30),
        ({"retry-after-ms": "2500"}, 2.5),
        ({}, 0.1),
        ({"retry-after": "nonsense"}, 0.1),
    ],
)
@pytest.mark.parametrize("status", [429, 503, 529])
def test_overload_delays_all_requests(clock: Clock, status: int, headers: dict[str, str], wait: float) -> None:
    async def main() -> None:
        limiter = RateLimiter(clock)
        limiter.update(status, headers, {})
        limiter.update(status, {"retry-after": "0.1"}, {})  # a shorter one does not shorten a longer one
        times = await pass_all(limiter, clock, cost_of(), 3)
        assert all(1000 + wait <= time <= 1000 + wait + 0.1 for time in times)

    asyncio.run(main())


def test_overload_delays_requests_that_already_wait(clock: Clock) -> None:
    async def main() -> None:
        limiter = limited(clock, requests=60)
        passing = asyncio.create_task(pass_all(limiter, clock, cost_of(), 4))
        await asyncio.wait([passing], timeout=0)
        limiter.update(429, {"retry-after": "100"}, {})
        times = await passing
        assert times[0] == 1000
        assert all(time >= 1100 for time in times[2:])

    asyncio.run(main())


@pytest.mark.parametrize("status", [200, 400, 500])
def test_other_statuses_delay_no_request(clock: Clock, status: int) -> None:
    limiter = RateLimiter(clock)
    limiter.update(status, {"retry-after": "100"}, {})
    assert asyncio.run(pass_all(limiter, clock, cost_of(), 2)) == [1000.0, 1000.0]


def test_what_remains_by_the_headers_corrects_the_bucket(clock: Clock) -> None:
    async def main() -> None:
        limiter = limited(clock, requests=600)
        taken = await limiter.acquire(cost_of())
        # Another program has used up what is left but one; of ours one more is on its way.
        await limiter.acquire(cost_of())
        limiter.update(200, {"x-ratelimit-limit-requests": "600", "x-ratelimit-remaining-requests": "1"}, taken)
        (passed,) = await pass_all(limiter, clock, cost_of(), 1)
        assert passed - 1000 == pytest.approx(0.1, rel=0.1)
        # A limit that was raised is used, and one that was lowered is kept.
        for limit in (6000, 60):
            clock.now += 1000
            limiter = RateLimiter(clock)
            limiter.update(200, {"x-ratelimit-limit-requests": str(limit), "x-ratelimit-remaining-requests": "60"}, {})
            check_rate(await pass_all(limiter, clock, cost_of(), 100), limit)

    asyncio.run(main())


@pytest.mark.parametrize("told", ["as the request comes", "as it is answered"])
@pytest.mark.parametrize("latency", [0.1, 2.0])
def test_steady_rate_at_a_provider_that_allows_short_bursts_only(clock: Clock, told: str, latency: float) -> None:
    """What flows in while a request is on its way counts, as does what is sent meanwhile."""
    per_second, burst = 20.0, 1.5 * 20
    level, filled_at = burst, clock.now
    on_its_way: deque[tuple[float, float, dict[Any, float]]] = deque()

    def remaining(taken: int) -> float:
        nonlocal level, filled_at
        level = min(burst, level + per_second * (clock.now - filled_at)) - taken
        filled_at = clock.now
        assert level >= 0  # else the request is refused
        return level

    async def main() -> list[float]:
        limiter = RateLimiter(clock)
        times = []
        for _ in range(400):
            taken = await limiter.acquire(cost_of())
            times.append(clock.now)
            on_its_way.append((clock.now, remaining(1), taken))
            if len(times) < 5:
                clock.now += 0.1  # what is not known yet is not to be exceeded
            while on_its_way and clock.now >= on_its_way[0][0] + latency:
                sent_at, left, taken = on_its_way.popleft()
                left = left if told == "as the request comes" else remaining(0)
                headers = {"x-ratelimit-limit-requests": "1200", "x-ratelimit-remaining-requests": str(int(left))}
                limiter.update(200, headers, taken, clock.now - sent_at)
            if not limiter.buckets:
                clock.now += latency
        return times

    times = asyncio.run(main())
    assert 200 / (times[-1] - times[-201]) > 0.95 * per_second


def test_expectations_are_corrected_by_what_was_counted(clock: Clock) -> None:
    async def main() -> None:
        limiter = limited(clock, output_tokens=6000)  # a hundred a second
        expected = cost_of(0, 100, 100)
        await limiter.acquire(expected)
        limiter.correct(expected, cost_of(0, 10, 100))
        (early,) = await pass_all(limiter, clock, cost_of(0, 90), 1)
        assert early - 1000 < 0.05
        limiter.correct(cost_of(), cost_of(0, 500, 0))  # it was far more than expected
        (late,) = await pass_all(limiter, clock, cost_of(0, 50), 1)
        assert late - early > 5

    asyncio.run(main())


def test_a_cancelled_waiting_request_takes_nothing(clock: Clock) -> None:
    async def main() -> None:
        limiter = limited(clock, requests=60)
        await limiter.acquire(cost_of())
        waiting = [asyncio.create_task(limiter.acquire(cost_of())) for _ in range(10)]
        last = asyncio.create_task(pass_all(limiter, clock, cost_of(), 1))
        await asyncio.wait([last], timeout=0)
        for task in waiting:
            task.cancel()
        assert (await last)[0] - 1000 < 3

    asyncio.run(main())


# The window


class Door:
    """Requests that enter a window and leave it when they are told to."""

    def __init__(self, most: int) -> None:
        self.concurrency = Concurrency(most)
        self.inside: list[tuple[int, bool, AsyncExitStack]] = []
        self.entered: list[int] = []
        self.tasks: dict[int, asyncio.Task[None]] = {}

    def arrive(self, *names: int) -> None:
        for name in names:
            self.tasks[name] = asyncio.create_task(self._enter(name))

    async def _enter(self, name: int) -> None:
        stack = AsyncExitStack()
        may_send = await stack.enter_async_context(self.concurrency.slot())
        self.inside.append((name, may_send, stack))
        self.entered.append(name)

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def leave(self, how: str = "ok") -> None:
        """The one that is inside for the longest time goes."""
        _, _, stack = self.inside.pop(0)
        if how == "ok":
            self.concurrency.report_success()
        elif how == "complaint":
            self.concurrency.report_overload()
        await stack.aclose()
        await self.settle()


async def filled(most: int, waiting: int = 500) -> Door:
    """A window with many who want to enter."""
    door = Door(most)
    door.arrive(*range(waiting))
    await door.settle()
    return door


def test_the_bound_doubles_every_round_until_the_first_overload_up_to_the_maximum() -> None:
    async def main() -> None:
        door = await filled(100)
        sizes = []
        for _ in range(6):
            sizes.append(len(door.inside))
            for _ in range(sizes[-1]):
                await door.leave()
        assert sizes == [FIRST_CONCURRENCY, 16, 32, 64, 100, 100]
        assert door.entered == sorted(door.entered)

    asyncio.run(main())


async def at_full_size(most: int) -> Door:
    """A window that has grown as far as it may, at the beginning of a round."""
    door = await filled(most, 2000)
    for size in (FIRST_CONCURRENCY, 16, 32, 64):
        if size <= most:
            for _ in range(size):
                await door.leave()
    assert len(door.inside) == most
    return door


def test_if_all_are_overloaded_the_bound_is_halved_and_then_grows_by_one_per_round() -> None:
    async def main() -> None:
        door = await at_full_size(32)
        for _ in range(32):
            await door.leave("complaint")
        assert door.concurrency.limit == 16
        while len(door.inside) > 16:
            await door.leave("failure")
        sizes = []
        for _ in range(4):
            sizes.append(len(door.inside))
            for _ in range(sizes[-1]):
                await door.leave()
        assert sizes[0] == 16
        assert all(after - before in (0, 1) for before, after in pairwise(sizes))
        assert sizes[-1] in (18, 19)

    asyncio.run(main())


def test_a_few_overloads_hardly_shrink_the_bound() -> None:
    async def main() -> None:
        door = await at_full_size(64)
        for number in range(64):
            await door.leave("complaint" if number % 16 == 0 else "ok")
        assert door.concurrency.limit == int(64 * (1 - 1 / 32))
        for number in range(320):
            await door.leave("complaint" if number % 20 == 0 else "ok")
        assert door.concurrency.limit >= 32  # it settles near 2 / share of complaints

    asyncio.run(main())


def test_it_is_never_less_than_one() -> None:
    async def main() -> None:
        door = await filled(4, 40)
        for _ in range(30):
            await door.leave("complaint")
        assert door.concurrency.limit == len(door.inside) == 1

    asyncio.run(main())


def test_it_does_not_grow_while_it_holds_nobody_back() -> None:
    async def main() -> None:
        door = Door(64)
        for name in range(200):
            door.arrive(name)
            await door.settle()
            await door.leave()
        assert door.concurrency.limit == FIRST_CONCURRENCY

    asyncio.run(main())


@given(st.integers(1, 12), st.lists(st.sampled_from(["arrive", "ok", "failure", "complaint", "cancel"]), max_size=80))
def test_slots_are_first_come_first_served_and_none_is_lost(most: int, events: list[str]) -> None:
    async def main() -> None:
        door = Door(most)
        names = iter(range(1000))
        cancelled = set()
        for event in events:
            before = len(door.inside)
            outside = [name for name, task in door.tasks.items() if not task.done()]
            if event == "arrive":
                door.arrive(*islice(names, 6))
            elif event == "cancel" and outside:
                door.tasks[outside[len(outside) // 2]].cancel()
                cancelled.add(outside[len(outside) // 2])
            elif event != "cancel" and door.inside:
                await door.leave(event)
            await door.settle()
            waiting = [name for name, task in door.tasks.items() if not task.done()]
            assert door.entered == sorted(door.entered)
            assert not waiting or max(door.entered) < min(waiting)
            assert door.concurrency.limit <= most
            assert len(door.inside) <= max(before, door.concurrency.limit)
            # Nobody waits while there is room.
            assert not waiting or len(door.inside) >= door.concurrency.limit
        while door.inside:
            await door.leave("failure")
        assert door.entered == [name for name in door.tasks if name not in cancelled]

    asyncio.run(main())


def test_new_requests_do_not_overtake_waiting_ones() -> None:
    async def main() -> None:
        door = await filled(1, 3)
        for name in range(3, 60):
            await door.leave()
            door.arrive(name)  # at the very moment that a place is free
            await door.settle()
        assert door.entered == list(range(58))

    asyncio.run(main())


def test_closing_releases_all_waiting_requests_and_sends_none() -> None:
    async def main() -> None:
        door = await filled(64, 100)
        assert len(door.inside) == FIRST_CONCURRENCY
        door.concurrency.close()
        door.arrive(100)
        await door.settle()
        may_send = [may for _, may, _ in door.inside]
        assert may_send == [True] * FIRST_CONCURRENCY + [False] * (101 - FIRST_CONCURRENCY)
        while door.inside:
            await door.leave("failure")

    asyncio.run(main())


@pytest.mark.parametrize("turns", range(4))
def test_a_cancelled_request_returns_its_slot(turns: int) -> None:
    async def main() -> None:
        door = await filled(1, 4)
        stack = door.inside.pop()[2]
        await stack.aclose()  # the next one is given the place now, and is cancelled before or after it takes it
        for _ in range(turns):
            await asyncio.sleep(0)
        door.tasks[1].cancel()
        await door.settle()
        if turns and door.inside:
            await door.leave()
        assert door.inside
        assert door.entered[-1] == 2

    asyncio.run(main())
