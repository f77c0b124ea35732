"""Requests through a provider's batch API, at half the price. Each batch is recorded before it is submitted."""

import asyncio
import json
import logging
import re
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from filelock import Timeout

from rebase.errors import RebaseError
from rebase.teacher.batch_journal import Batch
from rebase.teacher.concurrency import Pending, RequestGroup
from rebase.teacher.http import read_retry_after
from rebase.teacher.protocol import Failure, Request, Response, Session, well_formed
from rebase.teacher.response_cache import ResponseCache

if TYPE_CHECKING:
    from rebase.teacher.api import ApiTeacher
    from rebase.teacher.dialects import Dialect

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

#: Requests that are grouped and held in memory at the same time.
GROUP = 25_000
#: How often an item is submitted that expires or fails for a reason that may pass.
TRIES = 3
#: How often a call is made that fails for a reason that may pass: to submit a batch, or to read its results.
CALLS = 5
#: Statuses below 500 of errors that may pass. The provider has not accepted the batch then.
_TRANSIENT = frozenset({408, 409, 429})
#: What a provider writes if too many requests of the account wait in batches.
_QUEUE_IS_FULL = re.compile(r"token_limit_exceeded|enqueued token limit", re.IGNORECASE)
#: Seconds between two polls of a batch, or two submissions: at first, and at most.
FIRST_POLL, LONGEST_POLL = 1.0, 60.0
#: The longest wait for a full queue, in seconds: each submission uploads all requests again.
LONGEST_QUEUE_WAIT = 600.0
#: A run ends that has waited for so many seconds without the end of any batch: providers let a batch expire in a day.
LONGEST_WAIT = 36 * 3600.0
#: A line is logged after so many seconds of waiting.
_REPORT_SECONDS = 600.0
#: Timeouts of a response that a call may take: it may have many thousands of requests or responses.
_TIMEOUTS = 10


@dataclass(frozen=True)
class BatchState:
    """Whether a batch has ended, and why it failed as a whole, if it did."""

    has_ended: bool
    failure: str | None = None


@dataclass(frozen=True)
class Retry:
    """An item without a response and without charge, for a reason that may pass. Only some tries are counted."""

    reason: str
    is_counted: bool = True


class LostError(Exception):
    """A call whose response is late or malformed: its effect is not known."""


class BatchApi(Protocol):
    """A provider's batch API. ``most_requests`` and ``most_bytes`` bound one batch."""

    most_requests: int
    most_bytes: int

    def line(self, key: str, request: Request) -> dict[str, Any]:
        """Return one item, which the provider identifies by its key."""

    async def submit(self, lines: list[dict[str, Any]], token: str) -> str:
        """Submit a batch, marked with our token if possible; returns its id. Never tries twice."""

    async def find(self, token: str, keys: set[str], since: datetime) -> list[str]:
        """Return the ids of batches that may be the one submitted with the token, whose id was lost."""

    async def state(self, batch_id: str) -> BatchState:
        """Return the state of a batch."""

    def results(self, batch_id: str) -> AsyncIterator[tuple[str, Response | Failure | Retry]]:
        """Yield the outcome of each item of an ended batch, by key, in any order."""


class BatchSession(Session):
    """An open teacher that sends batches. Its journal of batches is that of the response cache."""

    def __init__(self, api: BatchApi, teacher: "ApiTeacher", sdk: Any, cache: ResponseCache) -> None:
        self._api = api
        self._teacher = teacher
        self._name = (teacher.provider, teacher.model, teacher.address)
        self._sdk = sdk
        self._cache = cache
        self._journal = cache.journal
        self._group = RequestGroup(GROUP, self._generate_all)
        self._stopped = asyncio.Event()
        self._dialects: dict[str, Dialect] = {}  # of submitted batches, by their token
        self._full_queues = 0
        self._waiting_since = self._reported = time.monotonic()

    @property
    def thinking_tokens(self) -> int:  # type: ignore[override]
        """Tokens that a response may have beyond ``max_tokens``."""
        return self._teacher.dialect.thinking_tokens

    async def generate(self, request: Request) -> Response | Failure:
        """Return the response to a request, sent with all those made at the same time. May take a day."""
        return await self._group.generate(request)

    def stop(self) -> None:
        """Submit nothing and wait for nothing more: submitted batches are in the journal for the next run."""
        self._stopped.set()

    async def _generate_all(self, group: list[Pending]) -> None:
        missing = {self._teacher.key(pending.request): pending for pending in group}
        tries: Counter[str] = Counter()
        self._waiting_since = self._reported = time.monotonic()
        try:
            while missing and not self._is_stopped:
                for key in list(missing):  # another process may have been faster
                    if cached_response := self._cache.get(key):
                        missing.pop(key).resolve(cached_response)
                batches = await self._find_submitted(set(missing))
                submitted = {key for batch in batches for key in batch.keys}
                unsent = {key: one.request for key, one in missing.items() if key not in submitted}
                for part in self._split(unsent):
                    if batch := await self._submit(part):
                        tries.update(part.keys())
                        batches.append(batch)
                for batch in batches:
                    for key, outcome in (await self._collect(batch)).items():
                        if key not in missing:
                            continue
                        if isinstance(outcome, Retry):
                            tries[key] -= not outcome.is_counted
                            if tries[key] < TRIES:
                                continue
                            outcome = Failure(key, f"{outcome.reason}, {tries[key]} times")  # noqa: PLW2901
                        missing.pop(key).resolve(outcome)
        except (self._sdk.APIError, LostError) as error:
            self._teacher.raise_if_final(error, self._sdk)
            raise RebaseError(
                f"The batch API of {'/'.join(self._name[:2])} failed: {self._teacher.describe(error)}\n"
                "Submitted batches are in the journal: run again to continue."
            ) from None
        for key, pending in missing.items():
            pending.resolve(Failure(key, "the run ended before the batch", "stopped"))

    async def _find_submitted(self, keys: set[str]) -> list[Batch]:
        """Return the journal's batches with some of the keys. Those without an id are recovered or closed."""
        submitted = []
        for batch in self._open_batches():
            if not keys & set(batch.keys):
                continue
            recovered: Batch | None = batch
            if batch.batch_id is None:
                async with self._submitting() as is_alone:
                    recovered = await self._recover(batch) if is_alone else None
            if recovered:
                logger.info("batch %s was submitted earlier: waiting for it", recovered.batch_id)
                submitted.append(recovered)
        return submitted

    def _open_batches(self) -> list[Batch]:
        return self._journal.open_batches(*self._name)

    @asynccontextmanager
    async def _submitting(self) -> AsyncIterator[bool]:
        """Wait until no other process submits or recovers a batch; gives False if the session is stopped before."""
        lock = self._journal.submission
        is_alone = False
        while not (is_alone or self._is_stopped):
            try:
                lock.acquire(timeout=0)
                is_alone = True
            except Timeout:
                await self._sleep(FIRST_POLL)
        try:
            yield is_alone
        finally:
            if is_alone:
                lock.release()

    async def _recover(self, batch: Batch) -> Batch | None:
        """Return the batch with its id if the provider has it; else close it. The caller is the only one to submit."""
        current = next((one for one in self._open_batches() if one.token == batch.token), None)
        if current is None or current.batch_id:
            return current
        keys = set(batch.keys)
        recorded_ids = self._journal.batch_ids()
        for batch_id in await self._repeat(lambda: self._api.find(batch.token, keys, batch.created)):
            if batch_id in recorded_ids:
                continue
            state = await self._wait(batch_id)  # its items are visible after its end
            is_whole = state.has_ended and state.failure is None
            if is_whole and not keys.isdisjoint(await self._results(batch_id)):
                self._journal.set_id(batch.token, batch_id)
                return replace(batch, batch_id=batch_id)
        if not self._is_stopped:
            self._journal.close(batch.token)
        return None

    def _split(self, requests: dict[str, Request]) -> list[dict[str, Request]]:
        """Split the requests into parts within the provider's bounds on a batch."""
        parts: list[dict[str, Request]] = []
        size = 0
        for key, request in requests.items():
            length = len(json.dumps(self._api.line(key, request)).encode()) + 1
            if not parts or len(parts[-1]) >= self._api.most_requests or size + length > self._api.most_bytes:
                parts.append({})
                size = 0
            parts[-1][key] = request
            size += length
        return parts

    async def _submit(self, part: dict[str, Request]) -> Batch | None:
        """Record a batch, submit it and record its id; None if another process was faster, or the session stopped."""
        lines = [self._api.line(key, request) for key, request in part.items()]
        call = 0
        while True:
            call += 1
            batch = Batch(uuid.uuid4().hex, None, tuple(part), datetime.now(UTC))
            self._dialects[batch.token] = self._teacher.dialect
            async with self._submitting() as is_alone:
                if not is_alone or not self._journal.add(batch, part.values(), *self._name):
                    return None
                try:
                    batch_id = await self._call(self._api.submit(lines, batch.token))
                except (self._sdk.APIError, LostError) as error:
                    status, response = getattr(error, "status_code", None), getattr(error, "response", None)
                    is_full = status == 429 or _QUEUE_IS_FULL.search(self._teacher.describe(error))
                    if status is not None and status < 500:
                        self._journal.close(batch.token)  # it was rejected
                        self._teacher.raise_if_final(error, self._sdk)
                        if not is_full and status not in _TRANSIENT:
                            raise
                    elif recovered := await self._recover(batch):
                        return recovered
                    if call >= CALLS and not is_full:
                        raise
                    wait = read_retry_after(response.headers) if response is not None else None
                else:
                    self._journal.set_id(batch.token, batch_id)
                    logger.info("batch %s: %d requests submitted to %s", batch_id, len(part), self._teacher.model)
                    return replace(batch, batch_id=batch_id)
            await self._sleep(min(LONGEST_POLL, FIRST_POLL * 2 ** min(call, 9) if wait is None else wait))

    async def _collect(self, batch: Batch) -> dict[str, Response | Failure | Retry]:
        """Wait for the end of the batch and cache its responses."""
        batch_id = str(batch.batch_id)
        try:
            state = await self._wait(batch_id, is_new=batch.token in self._dialects)
            can_be_read = state.has_ended and state.failure is None
            outcomes = await self._results(batch_id) if can_be_read else {}
        except self._sdk.NotFoundError:
            logger.warning("batch %s no longer exists at the provider: its requests are submitted again", batch_id)
            self._journal.close(batch.token)
            return dict.fromkeys(batch.keys, Retry(f"the provider does not know batch {batch_id}"))
        if not state.has_ended:  # stopped
            return {}
        used = self._dialects.get(batch.token, self._teacher.dialect)
        if state.failure is not None:
            self._journal.close(batch.token)
            if _QUEUE_IS_FULL.search(state.failure):
                wait = min(LONGEST_QUEUE_WAIT, FIRST_POLL * 2 ** min(self._full_queues, 10))
                self._full_queues += 1
                logger.info("The batch queue is full (%s): submitting again in %.0f seconds.", state.failure, wait)
                await self._sleep(wait)
            elif not self._teacher.learn(used, state.failure):
                raise RebaseError(
                    f"The batch {batch_id} of {'/'.join(self._name[:2])} failed: {state.failure}\n"
                    "Set teacher.batch: false, or fix what the provider reports; nothing was charged for this batch."
                )
            return dict.fromkeys(batch.keys, Retry(state.failure, is_counted=False))
        seconds = (datetime.now(UTC) - batch.created).total_seconds()
        for key, outcome in outcomes.items():
            if isinstance(outcome, Response):
                outcomes[key] = replace(outcome, seconds=seconds)
            elif isinstance(outcome, Failure) and self._teacher.learn(used, outcome.reason):
                outcomes[key] = Retry(outcome.reason, is_counted=False)
        responses = [one for one in outcomes.values() if isinstance(one, Response) and not one.is_empty]
        self._journal.close(batch.token, responses)
        return {key: Retry("no result") for key in batch.keys} | outcomes

    async def _results(self, batch_id: str) -> dict[str, Response | Failure | Retry]:
        """Return the outcome of each item by key, the first one if there are two. Reads interrupted results again."""
        try:
            return await self._repeat(partial(self._read_results, batch_id))
        except LostError as error:
            raise RebaseError(
                f"The results of batch {batch_id} of {'/'.join(self._name[:2])} cannot be read: {error}\n"
                "The batch is in the journal: run again to retry."
            ) from None

    async def _read_results(self, batch_id: str) -> dict[str, Response | Failure | Retry]:
        outcomes: dict[str, Response | Failure | Retry] = {}
        async for key, outcome in self._api.results(batch_id):
            if isinstance(outcome, Response):
                outcome = replace(outcome, text=well_formed(outcome.text), batch=True)  # noqa: PLW2901
            outcomes.setdefault(key, outcome)
        return outcomes

    async def _wait(self, batch_id: str, *, is_new: bool = False) -> BatchState:
        """Return the state of the batch when it has ended, or when the session is stopped.

        A new batch may not be known at once.
        """
        unknown = (self._sdk.NotFoundError,) if is_new else ()
        pause = FIRST_POLL
        while (
            not (state := await self._repeat(lambda: self._api.state(batch_id), *unknown)).has_ended
            and not self._is_stopped
        ):
            await self._sleep(pause)
            pause = min(LONGEST_POLL, 1.5 * pause)
        if state.failure is None:
            self._waiting_since = time.monotonic()
        return state

    async def _call(self, call: Awaitable[Value]) -> Value:
        """Return the result of a call. Raises an error of the SDK, or LostError."""
        seconds = _TIMEOUTS * self._teacher.timeout
        try:
            async with asyncio.timeout(seconds):
                return await call
        except (self._sdk.APIError, RebaseError):
            raise
        except TimeoutError:
            raise LostError(
                f"no whole response within {seconds:g} seconds ({_TIMEOUTS} times teacher.timeout)"
            ) from None
        except Exception as error:  # A malformed response, or half of one, has any.
            raise LostError(self._teacher.describe(error)) from error

    async def _repeat(self, call: Callable[[], Awaitable[Value]], *errors: type[Exception]) -> Value:
        """Return the result of a call that changes nothing; repeat it if its response is lost, or on these errors."""
        for number in range(1, CALLS):
            with suppress(LostError, *errors):
                return await self._call(call())
            await self._sleep(FIRST_POLL * 2**number)
        return await self._call(call())

    async def _sleep(self, seconds: float) -> None:
        """Sleep until the time is over or the session is stopped. Raises RebaseError if no batch ended for long."""
        waited = (now := time.monotonic()) - self._waiting_since
        if waited + seconds > LONGEST_WAIT:
            raise RebaseError(
                f"No batch of {'/'.join(self._name[:2])} ends within {LONGEST_WAIT / 3600:g} hours. Submitted batches "
                "are in the journal: run again to continue, or set teacher.batch: false."
            )
        if seconds > LONGEST_POLL or now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            logger.info("No batch has ended for %.0f minutes; the next try is in %.0f seconds.", waited / 60, seconds)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)

    @property
    def _is_stopped(self) -> bool:
        return self._stopped.is_set()


def required(value: Any) -> str:
    """Return a text of a provider's response: the SDKs accept any value there, or none. Raises TypeError for those."""
    if not isinstance(value, str):
        raise TypeError(f"the response has {value!r} instead of a batch's id or status")
    return value


def read_item(key: str, read: Callable[[dict[str, Any], str], Response], body: dict[str, Any]) -> Response | Failure:
    """Return the response in an item of a batch; a Failure if it is malformed."""
    try:
        return read(body, key)
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError):
        return Failure(key, f"not a response: {str(body)[:300]}")
