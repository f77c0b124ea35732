"""A teacher that says what a function of the test says: any reply, however bad, can be put before the nodes."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rebase.teacher.protocol import Failure, Reply, Request


class Scripted:
    """Implements the teacher's protocol; ``say`` gives a reply's text, a Failure's reason, or ``(text, finish)``."""

    provider = "scripted"
    model = "test"

    def __init__(self, say: Callable[[Request], "str | tuple[str, str] | Exception"]) -> None:
        self.say = say
        self.asked: list[Request] = []
        self.opened = 0

    @contextmanager
    def open(self) -> Iterator["Scripted"]:
        self.opened += 1
        yield self

    def ask(self, requests: Iterable[Request]) -> Iterator[Reply | Failure]:
        for request in requests:
            self.asked.append(request)
            key = request.key(self.provider, self.model)
            said = self.say(request)
            if isinstance(said, Exception):
                yield Failure(key, str(said))
            else:
                text, finish = said if isinstance(said, tuple) else (said, "stop")
                yield Reply(key, text, finish, 7, 3)
