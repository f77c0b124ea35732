"""Requests by the batch, at half the price: what is submitted is journalled first, found again and paid for once."""

import asyncio
import json
import logging
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from rebase.errors import RebaseError
from rebase.teacher.concurrency import RequestGroup
from rebase.teacher.http import read_retry_after
from rebase.teacher.protocol import Failure, Request, Response, well_formed
from rebase.teacher.response_cache import Batch, ResponseCache

logger = logging.getLogger(__name__)

#: Requests gathered at once: they wait in memory, and the next ones are asked for when these are answered.
GROUP = 25_000
#: How often an item is submitted that comes back expired or with a passing error.
TRIES = 3
#: How often a call is made that fails for a passing reason: to submit a batch, to read its results.
CALLS = 5
#: Statuses below 500 that may pass. The batch has not been taken then.
_PASSING = frozenset({408, 409, 429})
#: Seconds between two looks at a batch: at first, and at most.
FIRST_LOOK, LONGEST_LOOK = 1.0, 60.0


@dataclass(frozen=True)
class BatchState:
    """If a batch has ended, and why it failed as a whole, if it did."""

    has_ended: bool
    failure: str | None = None


@dataclass(frozen=True)
class Again:
    """An item that was not answered and not charged, for a reason that may pass."""

    reason: str


class BatchApi(Protocol):
    """A provider's batches. ``most_requests`` and ``most_bytes`` bound one."""

    most_requests: int
    most_bytes: int

    def line(self, key: str, request: Request) -> dict[str, Any]:
        """One item, which the provider knows by its key."""

    async def submit(self, lines: list[dict[str, Any]], token: str) -> str:
        """Submit a batch, marked by our token where there is a place for it; gives its id. Never tries twice."""

    async def find(self, token: str, keys: set[str], since: datetime) -> list[str]:
        """The ids of batches that may be the one submitted with the token: its answer was lost on the way."""

    async def state(self, batch_id: str) -> BatchState:
        """How the batch stands."""

    def results(self, batch_id: str) -> AsyncIterator[tuple[str, Response | Failure | Again]]:
        """What became of each item of a batch that has ended, by key, in any order."""


class BatchSession:
    """An open teacher that answers by batches."""

    def __init__(self, api: BatchApi, teacher: Any, sdk: Any, store: ResponseCache, thinking_tokens: int) -> None:
        self._api = api
        self._teacher = teacher
        self._sdk = sdk
        self._store = store
        self._group = RequestGroup(GROUP, self._answer)
        self._stopped = asyncio.Event()
        self.thinking_tokens = thinking_tokens

    async def generate(self, request: Request) -> Response | Failure:
        """Answer the request, with all those that are asked at the same time. May take a day."""
        return await self._group.generate(request)

    def stop(self) -> None:
        """Submit nothing more and wait for nothing: what is submitted stands in the journal for the next run."""
        self._stopped.set()

    async def _answer(self, group: list[Request], say: Callable[[int, Response | Failure], None]) -> None:
        provider, model = self._teacher.provider, self._teacher.model
        requests = {request.key(provider, model): (place, request) for place, request in enumerate(group)}
        tries: Counter[str] = Counter()
        missing = dict(requests)
        try:
            while missing and not self._is_stopped:
                for key in list(missing):  # another process may have been quicker
                    if stored := self._store.get(key):
                        say(missing.pop(key)[0], stored)
                batches = await self._on_their_way(set(missing))
                submitted = {key for batch in batches for key in batch.keys}
                for part in self._split(
                    {key: request for key, (_, request) in missing.items() if key not in submitted}
                ):
                    if batch := await self._submit(part):
                        tries.update(part.keys())
                        batches.append(batch)
                for batch in batches:
                    for key, answer in (await self._collect(batch)).items():
                        if key not in missing:
                            continue
                        if not isinstance(answer, Again):
                            say(missing.pop(key)[0], answer)
                        elif tries[key] >= TRIES:
                            say(missing.pop(key)[0], Failure(key, f"{answer.reason}, {tries[key]} times"))
        except self._sdk.APIError as error:
            self._teacher.stop_where_final(error, self._sdk)
            raise RebaseError(
                f"The batches of {provider}/{model} cannot be worked with: {self._teacher.words(error)}\n"
                "What was submitted stands in the journal: a new run goes on from there."
            ) from None
        for key, (place, _) in missing.items():
            say(place, Failure(key, "not waited for", "stopped"))

    async def _on_their_way(self, keys: set[str]) -> list[Batch]:
        """The journal's batches that hold some of the keys; those that got no id are looked for, or forgotten."""
        found = []
        for batch in self._open_batches():
            if not keys & set(batch.keys):
                continue
            named = batch if batch.batch_id else await self._recover(batch)
            if named:
                logger.info("batch %s was submitted before: waiting for it", named.batch_id)
                found.append(named)
        return found

    def _open_batches(self) -> list[Batch]:
        return self._store.open_batches(self._teacher.provider, self._teacher.model)

    async def _recover(self, batch: Batch) -> Batch | None:
        """The batch with its id, if the provider has it; else it is struck from the journal.

        None as well where another process has struck it, or nobody waits any more.
        """
        while True:
            now = next((known for known in self._open_batches() if known.token == batch.token), None)
            if now is None or now.batch_id:
                return now
            if not now.is_being_submitted and self._store.adopt_batch(now):
                break
            await self._pause(FIRST_LOOK)
            if self._is_stopped:
                return None
        known = self._store.batch_ids()
        for batch_id in await self._api.find(batch.token, set(batch.keys), batch.created):
            if batch_id not in known and await self._holds(batch_id, set(batch.keys)):
                self._store.name_batch(batch.token, batch_id)
                return replace(batch, batch_id=batch_id)
        if not self._is_stopped:
            self._store.close_batch(batch.token)
        return None

    async def _holds(self, batch_id: str, keys: set[str]) -> bool:
        """If the batch is ours: what is in a batch shows when it has ended."""
        state = await self._wait(batch_id)
        if state.failure is not None or not state.has_ended:
            return False
        return not keys.isdisjoint(await self._results(batch_id))

    def _split(self, requests: dict[str, Request]) -> list[dict[str, Request]]:
        """The requests in parts within the provider's bounds of a batch."""
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
        """Journal the batch, submit it and journal its id. Where the answer is lost the provider is asked for it.

        None where another process was quicker with some of the requests, or nobody waits any more.
        """
        lines = [self._api.line(key, request) for key, request in part.items()]
        for call in range(1, CALLS + 1):
            batch = Batch(uuid.uuid4().hex, None, tuple(part), datetime.now(UTC))
            if self._is_stopped or not self._store.open_batch(
                batch, part.values(), self._teacher.provider, self._teacher.model
            ):
                return None
            try:
                batch_id = await self._api.submit(lines, batch.token)
            except self._sdk.APIError as error:
                status = getattr(error, "status_code", None)
                if status is not None and status < 500:
                    self._store.close_batch(batch.token)
                    self._teacher.stop_where_final(error, self._sdk)
                elif recovered := await self._recover(batch):
                    return recovered
                if call == CALLS or (status is not None and status < 500 and status not in _PASSING):
                    raise
                response = getattr(error, "response", None)
                wait = read_retry_after(response.headers) if response is not None else None
                await self._pause(min(LONGEST_LOOK, FIRST_LOOK * 2**call if wait is None else wait))
                continue
            self._store.name_batch(batch.token, batch_id)
            logger.info("batch %s: %d requests submitted to %s", batch_id, len(part), self._teacher.model)
            return replace(batch, batch_id=batch_id)
        return None

    async def _collect(self, batch: Batch) -> dict[str, Response | Failure | Again]:
        """Wait for the batch's end and store its responses; the first of two results of one item counts."""
        batch_id = str(batch.batch_id)
        try:
            state = await self._wait(batch_id)
        except self._sdk.NotFoundError:
            logger.warning("batch %s is not known to the provider any more: its requests are submitted again", batch_id)
            self._store.close_batch(batch.token)
            return {}
        if not state.has_ended:  # nobody waits any more
            return {}
        if state.failure is not None:
            self._store.close_batch(batch.token)
            raise RebaseError(
                f"The batch {batch_id} of {self._teacher.provider}/{self._teacher.model} failed: {state.failure}\n"
                "Set teacher.batch: false, or mend what the provider says; nothing was charged for this batch."
            )
        answers = await self._results(batch_id)
        seconds = (datetime.now(UTC) - batch.created).total_seconds()
        for key, answer in answers.items():
            if isinstance(answer, Response):
                answers[key] = replace(answer, seconds=seconds)
        for key in set(batch.keys) - set(answers):
            answers[key] = Again("no result")
        self._store.put_batch(batch.token, [answer for answer in answers.values() if isinstance(answer, Response)])
        return answers

    async def _results(self, batch_id: str) -> dict[str, Response | Failure | Again]:
        """What became of a batch's items, by key. What is cut off on the way is read again."""
        import httpx2

        for call in range(1, CALLS + 1):
            answers: dict[str, Response | Failure | Again] = {}
            try:
                async for key, answer in self._api.results(batch_id):
                    if isinstance(answer, Response):
                        answer = replace(answer, text=well_formed(answer.text), batch=True)  # noqa: PLW2901
                    answers.setdefault(key, answer)
                return answers
            except (httpx2.HTTPError, ValueError) as error:  # ValueError: half a line of JSON
                if call == CALLS:
                    raise RebaseError(
                        f"The results of batch {batch_id} of {self._teacher.provider}/{self._teacher.model} cannot be "
                        f"read: {self._teacher.words(error)}\nThey stand in the journal: a new run tries again."
                    ) from None
                await self._pause(FIRST_LOOK * 2**call)
        raise AssertionError("unreachable")

    async def _wait(self, batch_id: str) -> BatchState:
        """The batch's state when it has ended, or when nobody waits any more."""
        look = FIRST_LOOK
        while not (state := await self._api.state(batch_id)).has_ended and not self._is_stopped:
            await self._pause(look)
            look = min(LONGEST_LOOK, 1.5 * look)
        return state

    async def _pause(self, seconds: float) -> None:
        """Wait so long, or until nobody waits any more."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)

    @property
    def _is_stopped(self) -> bool:
        return self._stopped.is_set()


def read_item(key: str, read: Callable[[dict[str, Any], str], Response], body: dict[str, Any]) -> Response | Failure:
    """The response in a batch's item; a Failure where the item is none of the provider's."""
    try:
        return read(body, key)
    except (AttributeError, IndexError, KeyError, TypeError):
        return Failure(key, f"not a response: {str(body)[:300]}")
