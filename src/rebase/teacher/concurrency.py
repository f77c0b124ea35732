"""Concurrent work on many rows, with the results in the order of the rows."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from rebase.teacher.protocol import Failure, Request, Response

T = TypeVar("T")
R = TypeVar("R")

#: A group of requests is complete if none was added in this many turns of the event loop.
_QUIET_TURNS = 3


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also if an event loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


async def in_order(
    work: Callable[[T], Coroutine[Any, Any, R]], items: Iterable[T], max_concurrency: Callable[[], int]
) -> AsyncGenerator[R]:
    """Yield the results of ``work`` in the order of the items, with up to ``max_concurrency()`` items at a time.

    ``max_concurrency`` is called before each item is taken: it may change with the results, and 0 ends the work. Items
    are taken only when they can be started, so that endless items need bounded memory. Close the generator
    (``aclosing``) to cancel the open work.
    """
    tasks: deque[asyncio.Task[R]] = deque()
    source = iter(items)
    try:
        while True:
            while len(tasks) < max_concurrency():
                try:
                    item = next(source)
                except StopIteration:
                    break
                tasks.append(asyncio.create_task(work(item)))
            if not tasks:
                return
            yield await tasks[0]
            tasks.popleft()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True)
class Pending:
    """A request whose caller waits for the outcome."""

    request: Request
    future: asyncio.Future[Response | Failure]

    def resolve(self, outcome: Response | Failure) -> None:
        """Give the outcome to the caller, unless it was cancelled."""
        if not self.future.done():
            self.future.set_result(outcome)


class RequestGroup:
    """Collects requests until no more are added, or there are ``size``, for ``process`` to resolve them together."""

    def __init__(self, size: int, process: Callable[[list[Pending]], Awaitable[None]]) -> None:
        self._size = size
        self._process = process
        self._waiting: list[Pending] = []
        self._collector: asyncio.Task[None] | None = None

    async def generate(self, request: Request) -> Response | Failure:
        """Add the request and wait for its response; raises what ``process`` raises."""
        pending = Pending(request, asyncio.get_running_loop().create_future())
        self._waiting.append(pending)
        if self._collector is None:
            self._collector = asyncio.create_task(self._collect())
        return await pending.future

    async def _collect(self) -> None:
        while self._waiting:
            count = quiet = 0
            while quiet < _QUIET_TURNS and len(self._waiting) < self._size:
                quiet = quiet + 1 if len(self._waiting) == count else 0
                count = len(self._waiting)
                await asyncio.sleep(0)
            waiting = [pending for pending in self._waiting if not pending.future.done()]  # done: cancelled
            group, self._waiting = waiting[: self._size], waiting[self._size :]
            try:
                if group:
                    await self._process(group)
            except BaseException as error:
                for pending in group:
                    if not pending.future.done():
                        pending.future.set_exception(error)
                if not isinstance(error, Exception):
                    raise
        self._collector = None
