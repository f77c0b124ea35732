"""A teacher whose responses a test writes: any response, however bad, can be given to the nodes."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from rebase.teacher.budget import FREE, Budget, Price, PriceTable
from rebase.teacher.cached import CachedTeacher
from rebase.teacher.protocol import Failure, Request, Response, Session, Teacher
from rebase.teacher.settings import BudgetSettings, TeacherSettings

NO_PRICES = PriceTable(as_of="2026-11-21", models={})


class Scripted(Teacher, Session):
    """Implements the teacher's protocol; ``say`` gives a response's text, a Failure's reason, or ``(text, finish)``.

    It repeats a response that it is to repair.
    """

    provider = "scripted"
    model = "test"

    def __init__(self, say: Callable[[Request], "str | tuple[str, str] | Exception"], concurrency: int = 16) -> None:
        self.say = say
        self.requests: list[Request] = []
        self.opened = 0
        self.concurrency = concurrency

    @classmethod
    def from_settings(cls, settings: TeacherSettings, **_: Any) -> "Scripted":
        """Not used: tests create it with its function."""
        raise NotImplementedError

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Scripted"]:
        self.opened += 1
        yield self

    async def generate(self, request: Request) -> Response | Failure:
        await asyncio.sleep(0)
        key = request.key(self.provider, self.model)
        if request.messages[-1].content.startswith("That reply cannot be used"):
            return Response(key, request.messages[-2].content, "stop", 7, 3)
        self.requests.append(request)
        response = self.say(request)
        if isinstance(response, Exception):
            return Failure(key, str(response))
        text, finish = response if isinstance(response, tuple) else (response, "stop")
        return Response(key, text, finish, 7, 3)


def cached(teacher: Teacher, path: Path | None = None, price: Price | None = FREE, **budget: Any) -> CachedTeacher:
    """The teacher with a response cache (a new one unless ``path`` is given), as the stages get it."""
    path = path or Path(tempfile.mkdtemp()) / "responses.sqlite"
    return CachedTeacher(teacher, path, Budget(BudgetSettings(**budget), price), NO_PRICES)


def generate_all(teacher: Any, requests: Iterable[Request]) -> list[Response | Failure]:
    """The outcomes of all requests, sent at once, in their order."""

    async def ask() -> list[Response | Failure]:
        async with teacher.open() as session:
            return list(await asyncio.gather(*(session.generate(request) for request in requests)))

    return asyncio.run(ask())
