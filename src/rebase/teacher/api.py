"""What the teachers behind an HTTP API share: the key, requests in flight, and what to do when one fails."""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from rebase.errors import RebaseError
from rebase.teacher.batches import BatchApi, BatchSession
from rebase.teacher.http import read_retry_after
from rebase.teacher.protocol import Failure, Request, Response, well_formed
from rebase.teacher.rate_limits import OVERLOADED, Cost, Kind, Pacer, Window
from rebase.teacher.response_cache import ResponseCache

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger(__name__)

#: How often an SDK repeats a request after a transport error, 408, 409, 429 or 5xx, with its own backoff.
RETRIES = 5
#: Tokens granted on top of ``max_tokens`` to a model that cannot be kept from thinking: its thoughts count too.
THINKING_TOKENS = 4096
#: After so many failures without a success between them the teacher is taken to be out of order.
FAILURES_TO_STOP = 10
#: HTTP statuses that every further request would get as well: wrong key, no credit, no permission, no such model.
_FINAL_STATUSES = frozenset({401, 402, 403, 404})
#: What providers answer, with other statuses, where the money is spent.
_NO_MONEY = (
    "insufficient_quota", "credit_balance", "credit balance is too low", "spend_limit", "usage_limit",
    "specified API usage limits", "specified workspace API usage limits", "billing_error",
)  # fmt: skip
#: Connections of one client: its pool looks through all of them for each request.
_POOL = 16
#: A longer ``retry-after`` is kept from the SDK, and one that is no number: it would give up, or wait for weeks.
_LONG_WAIT = 60.0
_UNREADABLE = "not a response"
#: How quickly the expected tokens follow what the provider counts.
_SMOOTHING = 0.1


@dataclass(frozen=True)
class Limits:
    """How much may be asked: requests in flight, and requests and tokens a minute (None: as the provider says).

    ``timeout`` is how many seconds a response may take.
    """

    max_concurrency: int = 64
    requests: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    timeout: float = 120.0

    @property
    def per_minute(self) -> dict[Kind, float | None]:
        """The limits a minute by kind."""
        return {"requests": self.requests, "input_tokens": self.input_tokens, "output_tokens": self.output_tokens}


@dataclass(frozen=True)
class Connection:
    """An SDK's open clients, as a session needs them.

    ``sdk`` is the SDK's module (it names the error types), ``send`` asks one request and gives the http_response,
    ``read`` makes a Response of its body and the request's key, ``batches`` are the provider's. ``temperature`` says
    if the model takes one, and ``thinking_tokens`` how many tokens a response may have beyond its ``max_tokens``.
    """

    sdk: Any
    send: Callable[[Request], Awaitable["httpx2.Response"]]
    read: Callable[[dict[str, Any], str], Response]
    batches: BatchApi
    temperature: bool
    thinking_tokens: int = 0


@dataclass
class _Flight:
    """One request on its way: what it is expected to take, what had been taken then, when it was sent last."""

    cost: Cost
    taken: dict[Kind, float]
    sent_at: float = 0.0


#: The flight of the task that is running: the SDK's client knows nothing of it.
_flight: ContextVar[_Flight] = ContextVar("flight")


@dataclass(frozen=True)
class ApiTeacher(ABC):
    """A handle of a hosted model; ``base_url`` replaces the address that the SDK knows."""

    model: str
    api_key: str | None = field(default=None, repr=False)
    base_url: str | None = None
    limits: Limits = Limits()

    compute_dtype: ClassVar[None] = None

    #: The provider's name in requests' keys, parameters and credentials.
    provider: ClassVar[str]
    #: The environment variable that holds the key.
    key_variable: ClassVar[str]

    @property
    def needs_key(self) -> bool:
        """If a key is a must."""
        return True

    @property
    def concurrency(self) -> int:
        """Enough that one slow response at the head of the line holds up none of the others."""
        return 8 * self.limits.max_concurrency

    @abstractmethod
    def connect(self, clients: "Clients") -> AbstractAsyncContextManager[Connection]:
        """Open the SDK's clients, made with ``clients``."""

    def check(self) -> None:
        """Raise RebaseError where the key is missing or cannot be one. Asks nothing of the provider."""
        where = (
            f"set the environment variable {self.key_variable}, or write it into conf/local/credentials.yml "
            f"(an --env other than local reads its own folder instead) as\n  teacher:\n    {self.provider}: YOUR_KEY"
        )
        if not self.api_key:
            if self.needs_key:
                raise RebaseError(f"The teacher {self.provider}/{self.model} needs an API key: {where}")
        elif any(character.isspace() for character in self.api_key):
            raise RebaseError(f"The API key of the teacher {self.provider}/{self.model} holds white space: {where}")

    @asynccontextmanager
    async def open(self) -> AsyncIterator["ApiSession"]:
        """Check the key and open the clients."""
        pacer, window = Pacer(self.limits.per_minute), Window(self.limits.max_concurrency)
        async with self._connected(pacer, window) as connection:
            yield ApiSession(self, connection, pacer, window)

    @asynccontextmanager
    async def open_batches(self, store: ResponseCache) -> AsyncIterator[BatchSession]:
        """As ``open``, to ask by batches, which are journalled in the store."""
        async with self._connected(Pacer(self.limits.per_minute), Window(self.limits.max_concurrency)) as connection:
            yield BatchSession(connection.batches, self, connection.sdk, store, connection.thinking_tokens)

    @asynccontextmanager
    async def _connected(self, pacer: Pacer, window: Window) -> AsyncIterator[Connection]:
        self.check()
        async with AsyncExitStack() as stack, self.connect(Clients(self.limits, pacer, window, stack)) as connection:
            yield connection

    def stop_where_final(self, error: Exception, sdk: Any, *, is_reached: bool = False) -> None:
        """Raise RebaseError where every further request would fail as well: key, credit, model or address are wrong.

        ``is_reached`` says that the provider has answered before: then the address is right.
        """
        words = self.words(error)
        status = getattr(error, "status_code", None)
        if status in _FINAL_STATUSES or _says_no_money(status, f"{words} {getattr(error, 'body', '')}"):
            raise RebaseError(
                f"The teacher {self.provider}/{self.model} answers with status {status}: {words}\n"
                f"Check the model's name (teacher.model in globals.yml), the key ({self.key_variable}, or "
                "credentials.yml) and the account's credit. Responses that had arrived are stored: a new run goes on "
                "from there."
            ) from None
        if type(error) is sdk.APIConnectionError and not is_reached:
            raise RebaseError(
                f"The teacher {self.provider}/{self.model} cannot be reached at {self.base_url or 'its address'}: "
                f"{words}\nCheck the network and teacher.base_url in globals.yml. Responses that had arrived are "
                "stored: a new run goes on from there."
            ) from None

    def words(self, error: Exception) -> str:
        """What the provider says of an error, never with the key."""
        return self.without_key(_words(error))

    def without_key(self, text: str) -> str:
        """The text with the key blotted out: some servers repeat it in their complaint."""
        return text.replace(self.api_key, "***") if self.api_key else text


class Clients:
    """Makes the SDKs' HTTP clients, whose every attempt waits for its turn and whose responses are listened to.

    ``send`` spreads requests over clients of a few connections each.
    """

    def __init__(self, limits: Limits, pacer: Pacer, window: Window, stack: AsyncExitStack) -> None:
        self._limits = limits
        self._pacer = pacer
        self._window = window
        self._stack = stack

    async def make(self, client: type, http_client: type, **arguments: Any) -> list[Any]:
        """The SDK's clients, as many as the requests in flight need, closed with the session."""
        import httpx2

        context = httpx2.create_ssl_context()
        count = max(1, -(-self._limits.max_concurrency // _POOL))
        made = []
        for _ in range(count):
            http = http_client(
                verify=context,
                # Room for the uneven: a connection that is being closed, say.
                limits=httpx2.Limits(
                    max_connections=4 * _POOL, max_keepalive_connections=2 * _POOL, keepalive_expiry=30
                ),
                event_hooks={"request": [self._before], "response": [self._after]},
            )
            timeout = httpx2.Timeout(self._limits.timeout, connect=10)
            made.append(client(http_client=http, timeout=timeout, max_retries=RETRIES, **arguments))
            await self._stack.enter_async_context(made[-1])
        return made

    async def _before(self, request: "httpx2.Request") -> None:
        flight = _flight.get(None)
        if flight is None:
            return
        if flight.sent_at:  # the SDK sends it again
            taken = await self._pacer.turn(flight.cost)
            if taken is None:
                raise asyncio.CancelledError
            flight.taken = taken
        flight.sent_at = time.monotonic()

    async def _after(self, http_response: "httpx2.Response") -> None:
        status, headers = http_response.status_code, http_response.headers
        flight = _flight.get(None)
        if flight is None:
            self._pacer.hear(status, headers, {})
        else:
            self._pacer.hear(status, headers, flight.taken, time.monotonic() - flight.sent_at)
        if status in OVERLOADED:
            self._window.complain()
            if _says_no_money(status, (await http_response.aread()).decode(errors="replace")):
                headers["x-should-retry"] = "false"
            elif (wait := read_retry_after(headers)) is None or wait > _LONG_WAIT:
                for name in ("retry-after", "retry-after-ms"):
                    headers.pop(name, None)


class ApiSession:
    """An open hosted teacher."""

    def __init__(self, teacher: ApiTeacher, connection: Connection, pacer: Pacer, window: Window) -> None:
        self._teacher = teacher
        self._connection = connection
        self._pacer = pacer
        self._window = window
        self._told_of_temperature = connection.temperature
        self._failed_in_a_row = 0
        self._tokens_per_character = 0.3
        self._output_tokens: float | None = None

    @property
    def thinking_tokens(self) -> int:
        """Tokens that a response may have beyond its request's ``max_tokens``."""
        return self._connection.thinking_tokens

    async def generate(self, request: Request) -> Response | Failure:
        """Answer the request, when the window and the provider's limits let it pass.

        RebaseError where no further request could succeed: wrong key, no credit, or nearly everything fails.
        """
        key = request.key(self._teacher.provider, self._teacher.model)
        async with self._window.entered() as may_send:
            cost = self._expect(request)
            taken = await self._pacer.turn(cost) if may_send else None
            if taken is None:
                return Failure(key, "not sent", "stopped")
            flight = _Flight(cost, taken)
            _flight.set(flight)
            self._tell_of_temperature(request)
            try:
                answer = await self._send(request, key, flight)
                self._learn(request, flight, answer)
            except RebaseError:
                self.stop()  # before the next in the line gets this place
                raise
        return answer

    def stop(self) -> None:
        """Send nothing more."""
        self._window.close()
        self._pacer.close()

    def _expect(self, request: Request) -> Cost:
        """What the request will take, by what earlier ones took."""
        limit = request.sampling.max_tokens + self.thinking_tokens
        output = min(limit, self._output_tokens if self._output_tokens is not None else limit)
        return Cost(request.characters * self._tokens_per_character, output, limit)

    async def _send(self, request: Request, key: str, flight: _Flight) -> Response | Failure:
        """Send the request; a response that cannot be read is asked for once more, which the SDKs do not do."""
        answer = await self._try(request, key, flight)
        if isinstance(answer, Failure) and answer.reason.startswith(_UNREADABLE):
            answer = await self._try(request, key, flight)
        return answer

    async def _try(self, request: Request, key: str, flight: _Flight) -> Response | Failure:
        sdk = self._connection.sdk
        try:
            http_response = await self._connection.send(request)
        except (sdk.APIError, ValueError) as error:  # ValueError: text that is not Unicode
            self._teacher.stop_where_final(error, sdk, is_reached=self._output_tokens is not None)
            status = getattr(error, "status_code", None)
            words = self._teacher.words(error)
            return Failure(key, f"status {status}: {words}" if status else words)
        try:
            response = self._connection.read(http_response.json(), key)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            excerpt = self._teacher.without_key(http_response.text)[:300]
            return Failure(key, f"{_UNREADABLE} of the {self._teacher.provider} API: {excerpt}")
        return replace(response, text=well_formed(response.text), seconds=time.monotonic() - flight.sent_at)

    def _learn(self, request: Request, flight: _Flight, answer: Response | Failure) -> None:
        if isinstance(answer, Failure):
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= FAILURES_TO_STOP:
                raise RebaseError(
                    f"The teacher {self._teacher.provider}/{self._teacher.model} is out of order: "
                    f"{self._failed_in_a_row} requests in a row have failed. It says: {answer.reason}\n"
                    "Responses that had arrived are stored: a new run goes on from there."
                )
            return
        self._failed_in_a_row = 0
        self._window.grow()
        actual = Cost(answer.input_tokens, answer.output_tokens, flight.cost.reserved_tokens)
        self._pacer.correct(flight.cost, actual)
        ratio = answer.input_tokens / max(1, request.characters)
        self._tokens_per_character += _SMOOTHING * (ratio - self._tokens_per_character)
        expected = self._output_tokens if self._output_tokens is not None else answer.output_tokens
        self._output_tokens = expected + _SMOOTHING * (answer.output_tokens - expected)

    def _tell_of_temperature(self, request: Request) -> None:
        if not self._told_of_temperature and request.sampling.temperature != 1:
            self._told_of_temperature = True
            logger.warning(
                "%s/%s takes no temperature: it samples at its own, %s is left out.",
                self._teacher.provider,
                self._teacher.model,
                request.sampling.temperature,
            )


def _says_no_money(status: int | None, text: str) -> bool:
    return status in (400, 429) and any(words in text for words in _NO_MONEY)


def _words(error: Exception) -> str:
    """What the provider says of an error: its message, else the body, else the SDK's words and their cause."""
    body = getattr(error, "body", None)
    # One SDK keeps the body whole, {"error": {"message": ...}}; the other keeps what is inside.
    inner = body.get("error", body) if isinstance(body, dict) else body
    message = inner.get("message") if isinstance(inner, dict) else inner
    if isinstance(message, str) and message.strip():
        return message.strip()
    cause = f" ({error.__cause__})" if error.__cause__ else ""
    return f"{str(error) or type(error).__name__}{cause}"
