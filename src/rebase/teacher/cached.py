"""The teacher that the stages ask: it looks into the store first, keeps to the budget and has bad responses mended."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path

from rebase.errors import RebaseError
from rebase.teacher.api import ApiTeacher
from rebase.teacher.batches import GROUP
from rebase.teacher.budget import FREE, Budget, Price, PriceTable, Usage, describe_price
from rebase.teacher.protocol import Failure, Message, Request, Response, Session, Teacher
from rebase.teacher.response_cache import ResponseCache

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedTeacher:
    """A teacher that asks only for responses which are not in the store at ``path``, and stores those it gets.

    Failures are never stored: they are asked again by the next run. ``budget`` is shared by all handles of a run;
    with ``batch`` a hosted teacher is asked by batches.
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

    @property
    def compute_dtype(self) -> str | None:
        """The number format in which the teacher computes here; None where it computes elsewhere."""
        return self.teacher.compute_dtype

    @property
    def concurrency(self) -> int:
        """How many requests should wait for their answers at once, to keep the teacher busy."""
        return GROUP if self.batch else self.teacher.concurrency

    @property
    def price(self) -> Price | None:
        """What its tokens cost; None where the table does not know the model."""
        return self.budget.price

    @property
    def price_in_words(self) -> str:
        """The price, or that there is none, in one line."""
        return describe_price(self.price, self.prices, self.provider, self.model)

    def check(self) -> None:
        """Raise RebaseError where the teacher cannot work: no key, or a budget in dollars without a price.

        Where the store holds responses of this teacher a missing key is only warned of: a run that needs no others can be
        replayed. Cheap: to be called before any work.
        """
        if self.budget.settings.budget_usd is not None and self.price is None:
            raise RebaseError(f"teacher.budget_usd cannot be kept: {self.price_in_words}, or set no budget_usd.")
        try:
            self.teacher.check()
        except RebaseError as error:
            if not isinstance(self.teacher, ApiTeacher) or not self._is_begun():
                raise
            logger.warning("Only responses that are stored in %s can be used. %s", self.path, error)

    def tokens_per_character(self) -> float | None:
        """What the provider counted for each character of this teacher's stored prompts; None where none is stored."""
        if not self.path.exists():
            return None
        with closing(ResponseCache(self.path)) as store:
            return store.tokens_per_character(self.provider, self.model)

    def _is_begun(self) -> bool:
        if not self.path.exists():
            return False
        with closing(ResponseCache(self.path)) as store:
            return store.holds_any(self.provider, self.model)

    @asynccontextmanager
    async def open(self) -> AsyncIterator["CachedSession"]:
        """Open the store. The teacher itself is opened when the first response is missing, and closed at the end.

        At the end nothing more is sent; what is on its way is waited for and stored.
        """
        with closing(ResponseCache(self.path)) as store:
            async with AsyncExitStack() as stack:
                session = CachedSession(self, store, stack)
                try:
                    yield session
                finally:
                    await session.finish()

    async def enter(self, store: ResponseCache, stack: AsyncExitStack) -> Session:
        """Open the teacher behind the store."""
        if not isinstance(self.teacher, ApiTeacher):
            return await stack.enter_async_context(self.teacher.open())
        if self.batch:
            return await stack.enter_async_context(self.teacher.open_batches(store))
        if batches := store.open_batches(self.provider, self.model):
            logger.warning(
                "%d batches of %s/%s were submitted and not collected: with teacher.batch=true their responses are used, "
                "without it they are paid for again.", len(batches), self.provider, self.model,
            )  # fmt: skip
        return await stack.enter_async_context(self.teacher.open())


class CachedSession:
    """An open store with a teacher behind it. ``usage`` is what was asked so far."""

    def __init__(self, handle: CachedTeacher, store: ResponseCache, stack: AsyncExitStack) -> None:
        self.usage = Usage()
        self._handle = handle
        self._store = store
        self._stack = stack
        self._session: Session | None = None
        self._opening = asyncio.Lock()
        self._opening_error: RebaseError | None = None
        self._bought: dict[str, asyncio.Task[Response | Failure]] = {}
        self._is_finished = False

    async def generate(self, request: Request) -> Response | Failure:
        """Answer the request, from the store or else from the teacher.

        A response that breaks the request's schema is shown to the teacher once with its error. What comes then is the
        answer, right or wrong; its tokens and dollars are those of both.
        """
        response = await self._once(request)
        fault = find_fault(request, response) if isinstance(response, Response) else None
        if fault is None or not isinstance(response, Response):
            return response
        second = await self._once(repair_request(request, response.text, fault))
        if isinstance(second, Failure):
            return response if second.kind == "failed" else second
        self.usage.repaired += 1
        return second.with_cost_of(response)

    async def finish(self) -> None:
        """Send nothing more, and wait for what is on its way."""
        self._is_finished = True
        if self._session:
            self._session.stop()
        await asyncio.gather(*self._bought.values(), return_exceptions=True)

    async def _once(self, request: Request) -> Response | Failure:
        """The stored response, or else one that is bought and stored even if nobody waits for it any more."""
        key = request.key(self._handle.provider, self._handle.model)
        stored = self._store.get(key)
        if stored is not None and key not in self._bought:
            return self._count(stored, is_cached=True)
        if key not in self._bought:
            self._bought[key] = asyncio.create_task(self._buy(request, key))
            self._bought[key].add_done_callback(lambda _: self._bought.pop(key, None))
        return await asyncio.shield(self._bought[key])

    async def _opened(self) -> Session:
        async with self._opening:
            if self._opening_error is not None:  # what one has met all would meet, and each after many tries
                raise self._opening_error
            if self._session is None:
                try:
                    self._session = await self._handle.enter(self._store, self._stack)
                except RebaseError as error:
                    self._opening_error = error
                    raise
            return self._session

    async def _buy(self, request: Request, key: str) -> Response | Failure:
        session, budget = await self._opened(), self._handle.budget
        aside = await budget.reserve(request, session.thinking_tokens, batch=self._handle.batch)
        if aside is None:
            if budget.settings.on_budget == "stop":
                raise RebaseError(
                    f"Stopped: {budget.explain()}. All of them are stored: with a larger budget a new run goes on "
                    "from there; with teacher.on_budget: continue the run would go on with what it has."
                )
            return self._count(Failure(key, budget.explain(), "budget"))
        try:
            answer = Failure(key, "not sent", "stopped") if self._is_finished else await session.generate(request)
            if isinstance(answer, Response):
                self._store.put(request, answer, self._handle.provider, self._handle.model)
            return self._count(answer)
        finally:
            budget.settle(aside)

    def _count(self, answer: Response | Failure, *, is_cached: bool = False) -> Response | Failure:
        """Count the answer and say what it cost."""
        price = self._handle.price
        self.usage.count(answer, price, is_cached=is_cached)
        if isinstance(answer, Failure):
            return answer
        self._handle.budget.count(answer)
        return answer if price is None else replace(answer, dollars=price.of(answer))


def find_fault(request: Request, response: Response) -> str | None:
    """What is wrong with a whole response by the request's schema; None where nothing is."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    if response.finish != "stop":
        return None
    try:
        said = response.parsed
    except ValueError as error:
        return f"it is not JSON: {error}"
    fault = best_match(Draft202012Validator(request.schema).iter_errors(said))
    return f"{fault.json_path}: {fault.message[:300]}" if fault else None


def repair_request(request: Request, said: str, fault: str) -> Request:
    """Ask again, showing the teacher its response and what is wrong with it."""
    turns = (
        Message("assistant", said),
        Message(
            "user",
            f"That reply cannot be used: {fault}\nReply again with nothing but JSON that is valid for this schema:\n"
            f"{json.dumps(request.schema)}",
        ),
    )
    return replace(request, messages=request.messages + turns)


def price_of(teacher: Teacher, prices: PriceTable) -> Price | None:
    """What a teacher's tokens cost: nothing where it is no hosted one, None where the table does not know it."""
    return prices.find(teacher.provider, teacher.model) if isinstance(teacher, ApiTeacher) else FREE
