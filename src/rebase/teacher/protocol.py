"""The teacher's protocol: a request in, a reply out."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; ``role`` is ``user`` or ``assistant``."""

    role: str
    content: str


@dataclass(frozen=True)
class Sampling:
    """How the reply is drawn: temperature 0 is greedy; ``max_tokens`` bounds the reply."""

    temperature: float = 0.7
    max_tokens: int = 1000


@dataclass(frozen=True)
class Request:
    """One question to the teacher. ``schema`` is the JSON schema of the reply; ``sample`` tells repeats apart."""

    system: str
    messages: tuple[Message, ...]
    schema: dict[str, Any]
    sampling: Sampling
    sample: int = 0

    def key(self, provider: str, model: str) -> str:
        """The content address of the reply: SHA-256 over everything that the reply depends on."""
        content = json.dumps([provider, model, asdict(self)], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Reply:
    """What the teacher said. ``finish`` is ``stop``, ``length`` or ``refusal``; tokens as the provider counts them."""

    key: str
    text: str
    finish: str
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Failure:
    """A request that got no reply, with the provider's own words. Never stored."""

    key: str
    reason: str


def ignore(request: Request, reply: Reply) -> None:
    """Nobody wants to know of a reply before its turn."""


class Session(Protocol):
    """An open teacher."""

    def ask(
        self, requests: Iterable[Request], arrived: Callable[[Request, Reply], None] = ignore
    ) -> Iterator[Reply | Failure]:
        """Answer each request, in the order given. A request that fails yields its Failure, the others go on.

        ``arrived`` is told of each reply as soon as it is there, which may be before its turn and in another thread.
        """


class Teacher(Protocol):
    """A cheap handle of a teacher; ``open`` loads weights or opens connections, and releases them at its end."""

    @property
    def provider(self) -> str:
        """The provider's name, part of every request's key."""

    @property
    def model(self) -> str:
        """The model's name, part of every request's key."""

    def open(self) -> AbstractContextManager[Session]:
        """Make the teacher ready; raises RebaseError where a key or a model is missing."""
