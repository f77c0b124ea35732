"""The flow of many requests: rows worked on at once, in order, without a barrier."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from rebase.teacher.protocol import Failure, Request, Response

T = TypeVar("T")
R = TypeVar("R")

#: A group of requests is complete when for so many turns of the event loop nobody has added one.
_QUIET_TURNS = 3


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where an event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


async def in_order(
    work: Callable[[T], Coroutine[Any, Any, R]], items: Iterable[T], room: Callable[[], int]
) -> AsyncGenerator[R]:
    """The results of ``work`` on each item, in the items' order, with up to ``room()`` items worked on at once.

    ``room`` is asked before an item is taken: it may change as results come, and ends the whole at 0. An item is taken
    only when there is room for it, so that endless items take bounded memory. Close it (``aclosing``) to cancel what
    is being worked on.
    """
    tasks: deque[asyncio.Task[R]] = deque()
    source = iter(items)
    try:
        while True:
            while len(tasks) < room():
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
    """Requests that are answered together: gathered until nobody adds one, or ``size`` are there.

    ``answer`` is given the requests of a group and says each one's answer, by its place, when it has it.
    """

    def __init__(
        self,
        size: int,
        answer: Callable[[list[Request], Callable[[int, Response | Failure], None]], Awaitable[None]],
    ) -> None:
        self._size = size
        self._answer = answer
        self._waiting: list[tuple[Request, asyncio.Future[Response | Failure]]] = []
        self._gatherer: asyncio.Task[None] | None = None

    async def generate(self, request: Request) -> Response | Failure:
        """Wait for the answer; raises what ``answer`` raises."""
        future: asyncio.Future[Response | Failure] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._gatherer is None:
            self._gatherer = asyncio.create_task(self._gather())
        return await future

    async def _gather(self) -> None:
        while self._waiting:
            count = quiet = 0
            while quiet < _QUIET_TURNS and len(self._waiting) < self._size:
                quiet = quiet + 1 if len(self._waiting) == count else 0
                count = len(self._waiting)
                await asyncio.sleep(0)
            waiting = [(request, future) for request, future in self._waiting if not future.done()]  # done: canceled
            group, self._waiting = waiting[: self._size], waiting[self._size :]
            if not group:
                continue
            futures = [future for _, future in group]

            def say(place: int, answer: Response | Failure, futures: list = futures) -> None:
                if not futures[place].done():  # done: the caller was canceled
                    futures[place].set_result(answer)

            try:
                await self._answer([request for request, _ in group], say)
            except BaseException as error:
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
                if not isinstance(error, Exception):
                    raise
        self._gatherer = None
