"""Concurrent work on many rows, with the results in the order of the rows."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
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


class RequestGroup:
    """Collects requests that are processed together: until no more are added, or there are ``size``.

    ``process`` gets the requests of a group, and a function that resolves each by its index as soon as it can.
    """

    def __init__(
        self,
        size: int,
        process: Callable[[list[Request], Callable[[int, Response | Failure], None]], Awaitable[None]],
    ) -> None:
        self._size = size
        self._process = process
        self._waiting: list[tuple[Request, asyncio.Future[Response | Failure]]] = []
        self._collector: asyncio.Task[None] | None = None

    async def generate(self, request: Request) -> Response | Failure:
        """Add the request and wait for its response; raises what ``process`` raises."""
        future: asyncio.Future[Response | Failure] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._collector is None:
            self._collector = asyncio.create_task(self._collect())
        return await future

    async def _collect(self) -> None:
        while self._waiting:
            count = quiet = 0
            while quiet < _QUIET_TURNS and len(self._waiting) < self._size:
                quiet = quiet + 1 if len(self._waiting) == count else 0
                count = len(self._waiting)
                await asyncio.sleep(0)
            waiting = [(request, future) for request, future in self._waiting if not future.done()]  # done: cancelled
            group, self._waiting = waiting[: self._size], waiting[self._size :]
            if not group:
                continue
            futures = [future for _, future in group]

            def resolve(index: int, outcome: Response | Failure, futures: list = futures) -> None:
                if not futures[index].done():  # done: the caller was cancelled
                    futures[index].set_result(outcome)

            try:
                await self._process([request for request, _ in group], resolve)
            except BaseException as error:
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
                if not isinstance(error, Exception):
                    raise
        self._collector = None
