"""The teacher that the stages use: it caches responses, stays within the budget and has invalid responses repaired."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path

from rebase.errors import RebaseError
from rebase.teacher.batches import GROUP
from rebase.teacher.budget import FREE, Budget, Price, PriceTable, Usage
from rebase.teacher.protocol import EMPTY_ADVICE, Failure, Message, Request, Response, Session, Teacher, parse_response
from rebase.teacher.response_cache import ResponseCache

logger = logging.getLogger(__name__)

_REPAIR = (
    "That reply cannot be used: {error}\nReply again with nothing but JSON that is valid for this schema:\n{schema}"
)


@dataclass(frozen=True)
class CachedTeacher:
    """A teacher that only sends requests whose responses are not in the cache at ``path``.

    Failures are not cached: the next run sends them again. All handles of a run share ``budget``. With ``batch`` a
    hosted teacher uses its batch API.
    """

    teacher: Teacher
    path: Path
    budget: Budget
    prices: PriceTable
    batch: bool = False

    @property
    def provider(self) -> str:
        """The provider's name."""
        return self.teacher.provider

    @property
    def model(self) -> str:
        """The model's name."""
        return self.teacher.model

    def key(self, request: Request) -> str:
        """Return the key of the teacher's response to a request."""
        return self.teacher.key(request)

    @property
    def compute_dtype(self) -> str | None:
        """The number format of computation on this machine; None if the model runs elsewhere."""
        return self.teacher.compute_dtype

    @property
    def concurrency(self) -> int:
        """How many requests should wait at the same time to keep the teacher busy."""
        return GROUP if self.batch else self.teacher.concurrency

    @property
    def price(self) -> Price | None:
        """The price of its tokens; None if the model is not in the price table."""
        return self.budget.price

    @property
    def price_in_words(self) -> str:
        """The price in one line, or what to do if there is none."""
        if self.price is None:
            name = f"{self.provider}/{self.model}"
            return f"no price for {name} in the table of {self.prices.as_of}: add it to prices in globals.yml"
        price, date = self.price, self.prices.as_of
        return f"${price.input:g} / ${price.output:g} per million tokens in / out (table of {date})"

    def check(self) -> None:
        """Raise RebaseError if the teacher cannot work: no key, or a budget in dollars without a price.

        If the cache has responses of a hosted teacher, a missing key is only a warning: the run may need no others.
        """
        if self.budget.settings.budget_usd is not None and self.price is None:
            raise RebaseError(f"teacher.budget_usd cannot be kept: {self.price_in_words}, or set no budget_usd.")
        try:
            self.teacher.check()
        except RebaseError as error:
            if not self.teacher.is_hosted or self.tokens_per_character() is None:
                raise
            logger.warning("Only the responses cached in %s can be used. %s", self.path, error)

    def tokens_per_character(self) -> float | None:
        """Input tokens per character in this teacher's cached responses; None if there are none."""
        if not self.path.exists():
            return None
        with closing(ResponseCache(self.path)) as cache:
            return cache.tokens_per_character(self.provider, self.model)

    @asynccontextmanager
    async def open(self) -> AsyncIterator["CachedSession"]:
        """Open the cache. The teacher itself is opened for the first missing response, and closed at the end.

        At the end no more requests are sent; the responses to those already sent are cached.
        """
        with closing(ResponseCache(self.path)) as cache:
            async with AsyncExitStack() as stack:
                session = CachedSession(self, cache, stack)
                try:
                    yield session
                finally:
                    await session.finish()


class CachedSession:
    """An open cache with a teacher behind it. ``usage`` counts the responses so far."""

    def __init__(self, handle: CachedTeacher, cache: ResponseCache, stack: AsyncExitStack) -> None:
        self.usage = Usage()
        self._handle = handle
        self._cache = cache
        self._stack = stack
        self._session: Session | None = None
        self._opening: asyncio.Task[Session] | None = None
        self._pending: dict[str, asyncio.Task[Response | Failure]] = {}
        self._is_finished = False
        self._empty_count = 0

    async def generate(self, request: Request) -> Response | Failure:
        """Return the response to the request, from the cache or else from the teacher.

        A response that violates the request's schema is shown to the teacher once, with the error. The second response
        is returned even if it is invalid too, with the tokens and dollars of both.
        """
        response = await self._generate_once(request)
        error = find_error(request, response) if isinstance(response, Response) else None
        if error is None or not isinstance(response, Response):
            return response
        second = await self._generate_once(repair_request(request, response.text, error))
        if isinstance(second, Failure):
            return response if second.kind == "failed" else second
        self.usage.repaired += 1
        return second.with_cost_of(response)

    async def finish(self) -> None:
        """Send no more requests, and wait for the responses to those already sent."""
        self._is_finished = True
        if self._session:
            self._session.stop()
        await asyncio.gather(*self._pending.values(), return_exceptions=True)
        if self._empty_count:
            name = f"{self._handle.provider}/{self._handle.model}"
            counts = (self._empty_count, self.usage.responses)
            logger.warning("%d of %d responses of %s are empty, and not cached. %s", *counts, name, EMPTY_ADVICE)

    async def _generate_once(self, request: Request) -> Response | Failure:
        """Return the cached response, or a new one, which is cached even if the caller is cancelled."""
        key = self._handle.key(request)
        cached_response = self._cache.get(key)
        if cached_response is not None and key not in self._pending:
            return self._count(cached_response, is_cached=True)
        if key not in self._pending:
            self._pending[key] = asyncio.create_task(self._generate_new(request, key))
            self._pending[key].add_done_callback(lambda _: self._pending.pop(key, None))
        return await asyncio.shield(self._pending[key])

    async def _open(self) -> Session:
        handle, teacher = self._handle, self._handle.teacher
        if teacher.is_hosted and not handle.batch:
            batches = self._cache.journal.open_batches(teacher.provider, teacher.model, teacher.address)
            if batches:
                logger.warning(
                    "%d batches of %s/%s were submitted but not collected: teacher.batch=true uses their responses, "
                    "otherwise they are paid for again.", len(batches), teacher.provider, teacher.model,
                )  # fmt: skip
        context = teacher.open_batches(self._cache) if handle.batch else teacher.open()
        self._session = await self._stack.enter_async_context(context)
        return self._session

    async def _generate_new(self, request: Request, key: str) -> Response | Failure:
        if self._opening is None:  # an error is met once, not by every request after many attempts
            self._opening = asyncio.create_task(self._open())
        session, budget = await asyncio.shield(self._opening), self._handle.budget
        reserved = await budget.reserve(request, session.thinking_tokens, batch=self._handle.batch)
        if reserved is None:
            if budget.settings.on_budget == "stop":
                raise RebaseError(
                    f"Stopped: {budget.explain()}. All of them are cached: run again with a larger budget to continue, "
                    "or set teacher.on_budget: continue to work with the responses so far."
                )
            return self._count(Failure(key, budget.explain(), "budget"))
        try:
            outcome = Failure(key, "not sent", "stopped") if self._is_finished else await session.generate(request)
            if isinstance(outcome, Response) and outcome.is_empty:
                self._empty_count += 1
            elif isinstance(outcome, Response):
                teacher = self._handle.teacher
                self._cache.put(request, outcome, teacher.provider, teacher.model, teacher.address)
            return self._count(outcome)
        finally:
            budget.release(reserved)

    def _count(self, outcome: Response | Failure, *, is_cached: bool = False) -> Response | Failure:
        """Count the outcome in usage and budget; returns it with its price."""
        price = self._handle.price
        self.usage.count(outcome, price, is_cached=is_cached)
        if isinstance(outcome, Failure):
            return outcome
        self._handle.budget.count(outcome)
        return outcome if price is None else replace(outcome, dollars=price.of(outcome))


def find_error(request: Request, response: Response) -> str | None:
    """Return how a complete response violates the request's schema; None if it is valid or empty.

    An empty response is not shown to the teacher: many servers accept no empty turn.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    if response.finish != "stop" or response.is_empty:
        return None
    try:
        parsed = parse_response(response.text)
    except ValueError as error:
        return f"it is not JSON: {error}"
    violation = best_match(Draft202012Validator(request.schema).iter_errors(parsed))
    return f"{violation.json_path}: {violation.message[:300]}" if violation else None


def repair_request(request: Request, text: str, error: str) -> Request:
    """Return the request with the invalid response and its error as further turns."""
    complaint = _REPAIR.format(error=error, schema=json.dumps(request.schema))
    turns = (Message("assistant", text), Message("user", complaint))
    return replace(request, messages=request.messages + turns)


def price_of(teacher: Teacher, prices: PriceTable) -> Price | None:
    """Return the price of a teacher's tokens: free if it is not hosted, None if the table does not have it."""
    return prices.find(teacher.provider, teacher.model) if teacher.is_hosted else FREE
