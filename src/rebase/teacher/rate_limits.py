"""Rate limiting: token buckets for the provider's limits, and an adaptive bound on concurrent requests (AIMD).

The buckets follow the limits per minute in the headers of the responses. The bound on concurrency covers what headers
do not tell, as TCP does: it doubles in every round until the provider is overloaded, shrinks by the share of overloaded
responses, and then grows by one in every round.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Literal

from rebase.teacher.http import read_retry_after

logger = logging.getLogger(__name__)

#: What providers limit. OpenAI limits the sum of input and output: ``tokens``.
Kind = Literal["requests", "input_tokens", "output_tokens", "tokens"]
Cost = Mapping[Kind, float]
#: A bucket holds what this many seconds grant: providers enforce a limit per minute over shorter times as well.
BURST_SECONDS = 1.0
#: The used share of a limit: clocks and latencies are not exact.
USED_SHARE = 0.995
#: Seconds after which a waiting request checks again whether it still has to wait.
_LONGEST_SLEEP = 0.5
#: Log waits longer than this many seconds.
_LONG_WAIT = 30.0
#: Concurrent requests at the start.
FIRST_CONCURRENCY = 8
#: Statuses that mean: too many requests, or too much load.
OVERLOADED = frozenset({429, 503, 529})

#: The providers' headers, with the kind and what they tell of it (limit or remaining).
_HEADERS: tuple[tuple[str, tuple[Kind, ...]], ...] = (
    ("anthropic-ratelimit-{0}-{1}", ("requests", "input_tokens", "output_tokens")),
    ("x-ratelimit-{1}-{0}", ("requests", "tokens")),
)


def cost_of(input_tokens: float = 0, output_tokens: float = 0, reserved_tokens: float = 0) -> Cost:
    """What a request takes from each bucket by its tokens. OpenAI counts the largest possible output: the reserved."""
    tokens = input_tokens + reserved_tokens
    return {"requests": 1, "input_tokens": input_tokens, "output_tokens": output_tokens, "tokens": tokens}


class Bucket:
    """A token bucket: it fills at ``per_minute`` and holds at most ``BURST_SECONDS`` of that."""

    def __init__(self, per_minute: float, now: float) -> None:
        self.per_minute = per_minute
        self.taken = 0.0
        self._level = self._capacity
        self._filled_at = now

    @property
    def _rate(self) -> float:
        return self.per_minute * USED_SHARE / 60

    @property
    def _capacity(self) -> float:
        return max(1.0, self._rate * BURST_SECONDS)

    def wait(self, amount: float, now: float) -> float:
        """Seconds until the amount can be taken. An amount above the capacity waits for a full bucket."""
        self._level = min(self._capacity, self._level + (now - self._filled_at) * self._rate)
        self._filled_at = now
        return max(0.0, (min(amount, self._capacity) - self._level) / self._rate)

    def take(self, amount: float) -> None:
        """Take an amount, which may leave a debt; a negative amount is put back."""
        self._level = min(self._capacity, self._level - amount)
        self.taken += amount

    def update(self, limit: float, remaining: float, taken_then: float, seconds: float) -> None:
        """Adopt the provider's limit, and what remained of it when it answered a request.

        ``taken_then`` is ``taken`` when that request was sent, ``seconds`` ago: what was taken since, and what the
        provider has granted since, may not be in ``remaining`` yet.
        """
        self.per_minute = limit
        self._level = min(self._level, remaining + seconds * self._rate - (self.taken - taken_then))


class RateLimiter:
    """Lets requests pass one by one, as fast as every bucket allows, and never while the provider asks to wait.

    ``waited`` counts the seconds of all waits; its owner resets it with every response. ``patience`` bounds it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, patience: float = math.inf) -> None:
        self._clock = clock
        self._patience = patience
        self.waited = 0.0
        self.buckets: dict[Kind, Bucket] = {}
        self._queue = asyncio.Lock()  # first come, first served
        self._wait_until = 0.0
        self._is_open = True

    async def acquire(self, cost: Cost) -> dict[Kind, float] | None:
        """Wait until the request may be sent, and take its cost.

        Returns what had been taken in all by then, for ``update``; None if the limiter was closed. Raises TimeoutError
        if the wait would exceed the patience.
        """
        async with self._queue:
            while self._is_open and (wait := self._wait(cost)) > 0:
                if self.waited + wait > self._patience:
                    raise TimeoutError(f"after waits of {self.waited:.0f} seconds, it asks to wait {wait:.0f} more")
                await asyncio.sleep(min(wait, _LONGEST_SLEEP))
                self.waited += min(wait, _LONGEST_SLEEP)
            if not self._is_open:
                return None
            for kind, bucket in self.buckets.items():
                bucket.take(cost[kind])
        return {kind: bucket.taken for kind, bucket in self.buckets.items()}

    def close(self) -> None:
        """Let no more requests pass."""
        self._is_open = False

    def correct(self, expected: Cost, actual: Cost) -> None:
        """Take the difference between the expected and the actual cost of a request."""
        for kind, bucket in self.buckets.items():
            bucket.take(actual[kind] - expected[kind])

    def update(
        self, status: int, headers: Mapping[str, str], taken_then: Mapping[Kind, float], seconds: float = 0.0
    ) -> None:
        """Adopt the limits in the headers of a response that took ``seconds``, and wait if it asks for that."""
        now = self._clock()
        for kind, (limit, remaining) in read_limits(headers).items():
            bucket = self.buckets.setdefault(kind, Bucket(limit, now))
            bucket.update(limit, remaining, taken_then.get(kind, bucket.taken), seconds)
        if status in OVERLOADED:
            wait = read_retry_after(headers) or 0.0
            if _LONG_WAIT < wait <= self._patience and now + wait > self._wait_until + _LONG_WAIT:
                logger.warning("The provider asks to wait %.0f seconds; the run continues after that.", wait)
            self._wait_until = max(self._wait_until, now + wait)

    def _wait(self, cost: Cost) -> float:
        now = self._clock()
        waits = [bucket.wait(cost[kind], now) for kind, bucket in self.buckets.items()]
        return max([self._wait_until - now, *waits])


class Concurrency:
    """The adaptive bound on concurrent requests.

    Results are counted in rounds of as many attempts as the bound. At the end of a round the bound shrinks by half the
    share of overloaded responses: if all were, it is halved; if few were, by chance, it hardly changes.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._limit = float(min(FIRST_CONCURRENCY, maximum))
        self._threshold = float(maximum)
        self._running = 0
        self._round = self.limit
        self._results = 0
        self._overloads = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_open = True

    @property
    def limit(self) -> int:
        """How many requests may run at the same time now."""
        return max(1, int(self._limit))

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[bool]:
        """Wait for a slot and hold it. Gives False after ``close``: the request may not be sent."""
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(slot)
        self._admit()
        try:
            await slot
            yield self._is_open
        finally:
            if slot.done() and not slot.cancelled():
                self._running -= 1
                self._admit()

    def report_success(self) -> None:
        """Count a successful attempt. The bound grows only while it holds requests back."""
        if self._running >= self.limit - 1:
            self._limit = min(self._maximum, self._limit + (1 if self._limit < self._threshold else 1 / self._limit))
        self._count()
        self._admit()

    def report_overload(self) -> None:
        """Count an attempt that the provider rejected because of its load."""
        self._overloads += 1
        self._count()

    def close(self) -> None:
        """Admit all waiting requests, which then may not be sent."""
        self._is_open = False
        self._admit()

    def _count(self) -> None:
        self._results += 1
        if self._results >= self._round:
            if self._overloads:
                self._limit = self._threshold = max(1.0, self._limit * (1 - self._overloads / self._results / 2))
            self._results = self._overloads = 0
            self._round = self.limit

    def _admit(self) -> None:
        while self._waiting and (self._running < self.limit or not self._is_open):
            slot = self._waiting.popleft()
            if not slot.done():
                slot.set_result(None)
                self._running += 1


def read_limits(headers: Mapping[str, str]) -> dict[Kind, tuple[float, float]]:
    """Read each limit per minute, and what remains of it, from the headers of a response."""
    limits: dict[Kind, tuple[float, float]] = {}
    for template, kinds in _HEADERS:
        for kind in kinds:
            names = (template.format(kind.replace("_", "-"), part) for part in ("limit", "remaining"))
            with suppress(KeyError, ValueError):
                limit, remaining = (float(headers[name]) for name in names)
                if 0 < limit < math.inf and math.isfinite(remaining):
                    limits[kind] = (limit, remaining)
    return limits
