"""How fast to ask: token buckets for the provider's limits, and a window of requests in flight (AIMD).

The buckets hold what the provider grants a minute, from the settings and from the headers of its responses; the
window finds out what the headers do not tell, as TCP does: it doubles a round until the first complaint, shrinks by the
share of complaints and grows by one a round.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from rebase.teacher.http import read_retry_after

logger = logging.getLogger(__name__)

#: What providers limit. OpenAI limits the sum of input and output: ``tokens``.
Kind = Literal["requests", "input_tokens", "output_tokens", "tokens"]
#: A bucket holds what so many seconds grant: providers enforce a minute's limit over shorter times as well.
BURST_SECONDS = 1.0
#: The share of a limit that is used: clocks and roads are not exact.
USED_SHARE = 0.995
#: Seconds after which who waits looks whether there is still something to wait for.
_LONGEST_SLEEP = 0.5
#: A wait that is worth a word.
_LONG_QUIET = 30.0
#: The window at the start.
FIRST_WINDOW = 8
#: Statuses that say: too fast, or too much for us just now.
OVERLOADED = frozenset({429, 503, 529})

_ANTHROPIC = "anthropic-ratelimit-{}-{}"
_OPENAI = "x-ratelimit-{1}-{0}"
_HEADERS: tuple[tuple[str, Kind, str], ...] = (
    (_ANTHROPIC, "requests", "requests"),
    (_ANTHROPIC, "input_tokens", "input-tokens"),
    (_ANTHROPIC, "output_tokens", "output-tokens"),
    (_OPENAI, "requests", "requests"),
    (_OPENAI, "tokens", "tokens"),
)


@dataclass(frozen=True)
class Cost:
    """What a request takes out of the buckets: its tokens, counted or expected.

    ``reserved_tokens`` are the output that it may have at most: what OpenAI counts.
    """

    input_tokens: float = 0.0
    output_tokens: float = 0.0
    reserved_tokens: float = 0.0

    def of(self, kind: Kind) -> float:
        """The share of one bucket."""
        match kind:
            case "requests":
                return 1.0
            case "tokens":
                return self.input_tokens + self.reserved_tokens
            case _:
                return float(getattr(self, kind))


class Bucket:
    """A token bucket: ``per_minute`` flow in evenly, and ``BURST_SECONDS`` of them are held at most."""

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
        """Seconds until the amount may be taken. What is more than the bucket holds waits for a full one."""
        self._level = min(self._capacity, self._level + (now - self._filled_at) * self._rate)
        self._filled_at = now
        return max(0.0, (min(amount, self._capacity) - self._level) / self._rate)

    def take(self, amount: float) -> None:
        """Take an amount, down to a debt; a negative one puts back."""
        self._level = min(self._capacity, self._level - amount)
        self.taken += amount

    def hear(self, limit: float, remaining: float, taken_then: float, seconds: float, per_minute: float | None) -> None:
        """Learn what the provider says: its limit, and what remained when it answered a request.

        ``taken_then`` is ``taken`` when that request was sent, ``seconds`` ago: what was taken and what has flowed in
        since may not yet be in ``remaining``. ``per_minute`` is the user's own limit, which stands if it is the lower
        one.
        """
        self.per_minute = min(limit, per_minute) if per_minute else limit
        self._level = min(self._level, remaining + seconds * self._rate - (self.taken - taken_then))


class Pacer:
    """Lets requests pass one by one, as fast as every bucket allows, and not at all while the provider says wait.

    ``per_minute`` are the user's limits; a kind that is missing there is limited by what the headers say.
    """

    def __init__(self, per_minute: Mapping[Kind, float | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._own = {kind: limit for kind, limit in per_minute.items() if limit}
        self._buckets = {kind: Bucket(limit, clock()) for kind, limit in self._own.items()}
        self._queue = asyncio.Lock()  # wakes its waiters in their order
        self._quiet_until = 0.0
        self._is_open = True

    @property
    def per_minute(self) -> dict[Kind, float]:
        """The limits as they are known now."""
        return {kind: bucket.per_minute for kind, bucket in self._buckets.items()}

    async def turn(self, cost: Cost) -> dict[Kind, float] | None:
        """Wait for one's turn and take the cost. Returns what had been taken in all by then, for ``hear``.

        Returns None where the pacer has been closed: nothing may be sent.
        """
        async with self._queue:
            while self._is_open and (wait := self._wait(cost)) > 0:
                await asyncio.sleep(min(wait, _LONGEST_SLEEP))
            if not self._is_open:
                return None
            for kind, bucket in self._buckets.items():
                bucket.take(cost.of(kind))
        return {kind: bucket.taken for kind, bucket in self._buckets.items()}

    def close(self) -> None:
        """Let nobody pass any more."""
        self._is_open = False

    def correct(self, expected: Cost, actual: Cost) -> None:
        """Take the difference between what a request was expected to take and what it took."""
        for kind, bucket in self._buckets.items():
            bucket.take(actual.of(kind) - expected.of(kind))

    def hear(
        self, status: int, headers: Mapping[str, str], taken_then: Mapping[Kind, float], seconds: float = 0.0
    ) -> None:
        """Learn from a response's headers, and keep quiet where it asks for that. It took so many ``seconds``."""
        now = self._clock()
        for kind, (limit, remaining) in read_limits(headers).items():
            if kind not in self._buckets:
                self._buckets[kind] = Bucket(limit, now)
            bucket = self._buckets[kind]
            bucket.hear(limit, remaining, taken_then.get(kind, bucket.taken), seconds, self._own.get(kind))
        if status in OVERLOADED:
            wait = read_retry_after(headers) or 0.0
            if wait > _LONG_QUIET and now + wait > self._quiet_until + _LONG_QUIET:
                logger.warning("The provider asks to wait for %.0f seconds; the run goes on then.", wait)
            self._quiet_until = max(self._quiet_until, now + wait)

    def _wait(self, cost: Cost) -> float:
        now = self._clock()
        waits = [bucket.wait(cost.of(kind), now) for kind, bucket in self._buckets.items()]
        return max([self._quiet_until - now, *waits])


class Window:
    """The requests in flight: a limit that grows while all goes well and shrinks as the provider complains.

    Outcomes are counted in rounds of as many attempts as may be in flight. A round's cut is half the share of its
    complaints: where all complain the window is halved, where a few do, by chance, it hardly shrinks.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = float(min(FIRST_WINDOW, most))
        self._threshold = float(most)
        self._in_flight = 0
        self._round = self.limit
        self._outcomes = 0
        self._complaints = 0
        self._line: deque[asyncio.Future[None]] = deque()
        self._is_open = True

    @property
    def limit(self) -> int:
        """Requests that may be in flight now."""
        return max(1, int(self._limit))

    @asynccontextmanager
    async def entered(self) -> AsyncIterator[bool]:
        """Wait for a place and hold it. Gives False where the window has been closed: nothing may be sent."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(place)
        self._let_in()
        try:
            await place
            yield self._is_open
        finally:
            if place.done() and not place.cancelled():
                self._in_flight -= 1
                self._let_in()

    def grow(self) -> None:
        """An attempt has succeeded. The window grows only while it is what holds requests back."""
        if self._in_flight >= self.limit - 1:
            self._limit = min(self._most, self._limit + (1 if self._limit < self._threshold else 1 / self._limit))
        self._count()
        self._let_in()

    def complain(self) -> None:
        """The provider complained of an attempt."""
        self._complaints += 1
        self._count()

    def _count(self) -> None:
        self._outcomes += 1
        if self._outcomes >= self._round:
            if self._complaints:
                self._limit = self._threshold = max(1.0, self._limit * (1 - self._complaints / self._outcomes / 2))
            self._outcomes = self._complaints = 0
            self._round = self.limit

    def close(self) -> None:
        """Let nobody in any more."""
        self._is_open = False
        self._let_in()

    def _let_in(self) -> None:
        """Give those in the line their places, in their order, as long as there are any; all where it is closed."""
        while self._line and (self._in_flight < self.limit or not self._is_open):
            place = self._line.popleft()
            if not place.done():
                place.set_result(None)
                self._in_flight += 1


def read_limits(headers: Mapping[str, str]) -> dict[Kind, tuple[float, float]]:
    """What a response's headers say of each limit: how much a minute, and how much is left."""
    found: dict[Kind, tuple[float, float]] = {}
    for template, kind, name in _HEADERS:
        try:
            limit, remaining = (float(headers[template.format(name, what)]) for what in ("limit", "remaining"))
        except (KeyError, ValueError):
            continue
        if 0 < limit < math.inf and math.isfinite(remaining):
            found[kind] = (limit, remaining)
    return found
