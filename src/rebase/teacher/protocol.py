"""The teacher's protocol: a request in, a response out."""

import hashlib
import json
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; ``role`` is ``user`` or ``assistant``."""

    role: str
    content: str


@dataclass(frozen=True)
class Sampling:
    """How the response is drawn: temperature 0 is greedy; ``max_tokens`` bounds the response."""

    temperature: float = 0.7
    max_tokens: int = 1000


@dataclass(frozen=True)
class Request:
    """One question to the teacher. ``schema`` is the JSON schema of the response; ``sample`` tells repeats apart."""

    system: str
    messages: tuple[Message, ...]
    schema: dict[str, Any]
    sampling: Sampling
    sample: int = 0

    def key(self, provider: str, model: str) -> str:
        """The content address of the response: SHA-256 over everything that the response depends on."""
        content = json.dumps([provider, model, self._plain], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def characters(self) -> int:
        """The length of all that is said, in characters."""
        return len(self.system) + sum(len(turn.content) for turn in self.messages)

    @property
    def _plain(self) -> dict[str, Any]:
        """As ``dataclasses.asdict`` has it, which takes ten times as long: it copies everything."""
        return {
            "system": self.system,
            "messages": [vars(turn) for turn in self.messages],
            "schema": self.schema,
            "sampling": vars(self.sampling),
            "sample": self.sample,
        }

    def to_json(self) -> str:
        """The request as one line of JSON."""
        return json.dumps(self._plain)

    @classmethod
    def from_json(cls, text: str) -> "Request":
        """The request that ``to_json`` wrote."""
        said = json.loads(text)
        messages = tuple(Message(**turn) for turn in said["messages"])
        return cls(said["system"], messages, said["schema"], Sampling(**said["sampling"]), said["sample"])


@dataclass(frozen=True)
class Response:
    """What the teacher said. ``finish`` is ``stop``, ``length`` or ``refusal``; tokens as the provider counts them.

    ``seconds`` is how long it took, ``batch`` if it came by a batch, at the batch's price. ``dollars`` is what it
    cost by the table of prices, those of a response that it repairs included; None where the table has no such model.
    """

    key: str
    text: str
    finish: str
    input_tokens: int
    output_tokens: int
    seconds: float = 0.0
    batch: bool = False
    dollars: float | None = None

    @property
    def parsed(self) -> Any:
        """What the text says as JSON; ValueError where it is none."""
        return json.loads(self.text)

    def with_cost_of(self, earlier: "Response") -> "Response":
        """The response with the tokens and dollars of an earlier one, which led to it, as well."""
        return replace(
            self,
            input_tokens=earlier.input_tokens + self.input_tokens,
            output_tokens=earlier.output_tokens + self.output_tokens,
            dollars=None if self.dollars is None or earlier.dollars is None else earlier.dollars + self.dollars,
        )


@dataclass(frozen=True)
class Failure:
    """A request that got no response, with the provider's own words. Never stored.

    ``kind`` is ``failed``, ``budget`` (the budget was reached: it was not sent) or ``stopped`` (nobody waits for it).
    """

    key: str
    reason: str
    kind: Literal["failed", "budget", "stopped"] = "failed"


def well_formed(text: str) -> str:
    """The text with half surrogate pairs replaced: JSON can carry them, UTF-8 (and so the store) cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def why_unreadable(answer: Response | Failure) -> str:
    """Why there is nothing to read in an answer that is no whole response, as the tables of refusals say it."""
    if isinstance(answer, Failure):
        return "budget_reached" if answer.kind == "budget" else "teacher_failed"
    return "response_cut_off" if answer.finish == "length" else "teacher_refused"


class Session(Protocol):
    """An open teacher."""

    @property
    def thinking_tokens(self) -> int:
        """Tokens that a response may have beyond its request's ``max_tokens``."""

    async def generate(self, request: Request) -> Response | Failure:
        """Answer the request. RebaseError where no further request could succeed."""

    def stop(self) -> None:
        """Send nothing more: what has not been sent fails at once, what is on its way goes on."""


class Teacher(Protocol):
    """A cheap handle of a teacher; ``open`` loads weights or opens connections, and releases them at its end."""

    @property
    def provider(self) -> str:
        """The provider's name, part of every request's key."""

    @property
    def model(self) -> str:
        """The model's name, part of every request's key."""

    @property
    def compute_dtype(self) -> str | None:
        """The number format in which the teacher computes here; None where it computes elsewhere."""

    @property
    def concurrency(self) -> int:
        """How many requests should wait for their answers at once, to keep the teacher busy."""

    def check(self) -> None:
        """Raise RebaseError where the teacher cannot work: a key is missing, say. Cheap, and asks nobody."""

    def open(self) -> AbstractAsyncContextManager[Session]:
        """Make the teacher ready; raises RebaseError where a key or a model is missing."""
