"""The protocol of a teacher: a request in, a response out."""

import hashlib
import json
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from rebase.teacher.settings import TeacherSettings

if TYPE_CHECKING:
    from rebase.teacher.response_cache import ResponseCache


#: What to do if responses are empty.
EMPTY_ADVICE = (
    "Models that reason may spend all their tokens on it: raise the stage's sampling.max_tokens, or turn reasoning "
    "off, for example with teacher.extra_body: {chat_template_kwargs: {enable_thinking: false}} for vLLM and "
    "llama.cpp, or {reasoning_effort: none} for others."
)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; ``role`` is ``user`` or ``assistant``."""

    role: str
    content: str


@dataclass(frozen=True)
class Sampling:
    """How the response is sampled: temperature 0 is greedy; ``max_tokens`` bounds the response."""

    temperature: float = 0.7
    max_tokens: int = 1000


@dataclass(frozen=True)
class Request:
    """A request for one response that fits the JSON schema ``schema``.

    ``sample`` distinguishes repeated samples of the same prompt.
    """

    system: str
    messages: tuple[Message, ...]
    schema: dict[str, Any]
    sampling: Sampling
    sample: int = 0

    def key(self, provider: str, model: str, address: str = "") -> str:
        """Return the content address of the response: the SHA-256 of everything that the response depends on."""
        teacher = [provider, model, address] if address else [provider, model]
        content = json.dumps([*teacher, vars(self)], sort_keys=True, ensure_ascii=False, default=vars)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def characters(self) -> int:
        """The length of the system prompt and all messages, in characters."""
        return len(self.system) + sum(len(message.content) for message in self.messages)

    def to_json(self) -> str:
        """Return the request as one line of JSON."""
        return json.dumps(vars(self), default=vars)

    @classmethod
    def from_json(cls, text: str) -> "Request":
        """Read a request that ``to_json`` wrote."""
        plain = json.loads(text)
        messages = tuple(Message(**message) for message in plain["messages"])
        return cls(plain["system"], messages, plain["schema"], Sampling(**plain["sampling"]), plain["sample"])


@dataclass(frozen=True)
class Response:
    """A response of the teacher. ``finish`` is ``stop``, ``length`` or ``refusal``; the provider counts the tokens.

    ``seconds`` is the latency. ``batch`` marks a response of the batch API, which has its own price. ``dollars`` is the
    price by the price table, None if the model is not in it; for a repaired response it includes the first attempt.
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
    def is_empty(self) -> bool:
        """Whether the model wrote nothing. A refusal without words is not empty."""
        return self.finish != "refusal" and not self.text.strip()

    def with_cost_of(self, earlier: "Response") -> "Response":
        """Return the response with the tokens and dollars of an earlier one added."""
        return replace(
            self,
            input_tokens=earlier.input_tokens + self.input_tokens,
            output_tokens=earlier.output_tokens + self.output_tokens,
            dollars=None if self.dollars is None or earlier.dollars is None else earlier.dollars + self.dollars,
        )


@dataclass(frozen=True)
class Failure:
    """A request without a response, and the provider's reason. Failures are never cached.

    ``kind`` is ``failed``, ``budget`` (not sent: the budget is spent) or ``stopped`` (not sent: the run has ended).
    """

    key: str
    reason: str
    kind: Literal["failed", "budget", "stopped"] = "failed"


def token_count(value: Any) -> int:
    """Return the number of tokens that a provider counts, 0 if absent. Raises ValueError if it is no such number."""
    try:
        count = int(value or 0)
    except (TypeError, OverflowError):
        count = -1
    if not 0 <= count < 2**40:
        raise ValueError(f"{str(value)[:100]} is not a number of tokens")
    return count


def parse_response(text: str) -> Any:
    """Parse the JSON in a response: the text itself, or the last object in it after any thoughts and among other words.

    Raises ValueError if there is none.
    """
    if not text.strip():
        raise ValueError("the response is empty")
    try:
        try:
            value = json.loads(text)
        except ValueError as error:
            value = _last_object(text.rpartition("</think>")[2], error)
    except RecursionError:
        raise ValueError("the response is nested too deeply") from None
    return json.loads(well_formed(json.dumps(value, ensure_ascii=False))) if r"\u" in text else value


def _last_object(text: str, error: ValueError) -> Any:
    """Return the last JSON object in a text; raises the error if there is none, or the text is a broken object."""
    value, end = None, 0
    while (start := text.find("{", end)) >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, start)
        except ValueError:
            if not text[:start].strip():
                break
            end = start + 1
    if value is None:
        raise error
    return value


def well_formed(text: str) -> str:
    """Replace unpaired surrogates: JSON can contain them, but UTF-8 and the response cache cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def why_unreadable(outcome: Response | Failure) -> str:
    """Return the rejection reason for a failure, or for a response that did not finish with ``stop``."""
    if isinstance(outcome, Failure):
        return "budget_reached" if outcome.kind == "budget" else "teacher_failed"
    return "response_cut_off" if outcome.finish == "length" else "teacher_refused"


class Session(ABC):
    """An open teacher."""

    #: Tokens that a response may use for reasoning beyond its request's ``max_tokens``.
    thinking_tokens: int = 0

    @abstractmethod
    async def generate(self, request: Request) -> Response | Failure:
        """Return the response to a request. Raises RebaseError if no further request could succeed."""

    def stop(self) -> None:  # noqa: B027  # many teachers have nothing to stop
        """Send no more requests: those not yet sent fail immediately, those already sent continue."""


class Teacher(ABC):
    """A cheap handle of a teacher. ``provider``, ``model`` and ``address`` are part of the key of every request.

    A provider implements ``from_settings`` and ``open``; the other members have defaults.
    """

    provider: str
    model: str
    #: The server, if it is not the provider's own (see ``server_address``).
    address: str = ""
    #: The number format of computation on this machine; None if the model runs elsewhere.
    compute_dtype: str | None = None
    #: How many requests should wait at the same time to keep the teacher busy.
    concurrency: int = 64
    #: Whether each response costs money: it then needs a price, and a key unless all responses are cached.
    is_hosted: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def from_settings(
        cls, settings: TeacherSettings, *, key: str | None, cache_path: Path, model_folder: Path, dtype: str
    ) -> Self:
        """Create the teacher from the group ``teacher`` of globals.yml, with the run's parameters.

        ``key`` is the provider's API key, ``cache_path`` the response cache, ``model_folder`` where weights from Python
        packages are converted to, and ``dtype`` the number format of computation (``rebase.weights.Dtype``).
        """

    def key(self, request: Request) -> str:
        """Return the key of this teacher's response to a request."""
        return request.key(self.provider, self.model, self.address)

    def check(self) -> None:  # noqa: B027  # not every teacher has something to check
        """Raise RebaseError if the teacher cannot work, for example without a key. Cheap; sends nothing."""

    @abstractmethod
    def open(self) -> AbstractAsyncContextManager[Session]:
        """Load weights or open connections, and release them at the end. Raises RebaseError if that fails."""

    def open_batches(self, cache: "ResponseCache") -> AbstractAsyncContextManager[Session]:
        """Open the teacher's batch API, whose batches the cache records; without a batch API the same as ``open``."""
        return self.open()
