"""What the hosted teachers share: the key, HTTP clients, rate limiting, and the handling of errors."""

import asyncio
import logging
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from rebase.errors import RebaseError
from rebase.teacher.batches import BatchApi, BatchSession
from rebase.teacher.http import read_retry_after
from rebase.teacher.protocol import Failure, Request, Response, Session, Teacher, well_formed
from rebase.teacher.rate_limits import OVERLOADED, Concurrency, Cost, Kind, RateLimiter
from rebase.teacher.response_cache import ResponseCache
from rebase.teacher.settings import TeacherSettings

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger(__name__)

#: How often an SDK repeats a request after a transport error, 408, 409, 429 or 5xx, with its own backoff.
RETRIES = 5
#: Tokens in addition to ``max_tokens`` for a model whose reasoning cannot be turned off: it counts as output.
THINKING_TOKENS = 4096
#: After this many failures in a row the run stops.
FAILURES_TO_STOP = 10
#: HTTP statuses that every further request would get as well: wrong key, no credit, no permission, no such model.
_FINAL_STATUSES = frozenset({401, 402, 403, 404})
#: What providers write, with other statuses, when the account has no credit.
_NO_CREDIT = (
    "insufficient_quota", "credit_balance", "credit balance is too low", "spend_limit", "usage_limit",
    "specified API usage limits", "specified workspace API usage limits", "billing_error",
)  # fmt: skip
#: Connections per client: its pool searches all of them for each request.
_POOL = 16
#: The SDKs give up on a longer or unreadable ``retry-after``, or wait for weeks; it is hidden from them.
_LONG_WAIT = 60.0
_UNREADABLE = "not a response"
_RESUME = "Responses received so far are cached: run again to continue."
#: The weight of a new response in the moving averages of expected tokens.
_SMOOTHING = 0.1


@dataclass(frozen=True)
class Connection:
    """The open clients of an SDK.

    ``sdk`` is the SDK's module, which defines the error types. ``send`` sends one request; ``read`` makes a Response of
    the JSON body and the request's key. ``temperature`` says whether the model accepts one. ``thinking_tokens`` are the
    tokens that a response may have beyond ``max_tokens``.
    """

    sdk: Any
    send: Callable[[Request], Awaitable["httpx2.Response"]]
    read: Callable[[dict[str, Any], str], Response]
    batches: BatchApi
    temperature: bool
    thinking_tokens: int = 0


@dataclass
class _Call:
    """A request that is being sent: its expected cost, what had been taken by then, and when it was last sent."""

    cost: Cost
    taken: dict[Kind, float]
    sent_at: float = 0.0


#: The call of the running task, for the hooks of the SDK's HTTP client.
_call: ContextVar[_Call] = ContextVar("call")


@dataclass(frozen=True)
class ApiTeacher(Teacher):
    """A handle of a hosted model. ``base_url`` replaces the SDK's default address; ``timeout`` is in seconds."""

    model: str
    api_key: str | None = field(default=None, repr=False)
    base_url: str | None = None
    max_concurrency: int = 64
    timeout: float = 120.0

    is_hosted: ClassVar[bool] = True
    #: The environment variable of the key.
    key_variable: ClassVar[str]

    @classmethod
    def from_settings(cls, settings: TeacherSettings, *, key: str | None, **_: Any) -> Self:
        """Create the teacher from the settings and its key."""
        return cls(settings.model, key, settings.base_url, settings.max_concurrency, settings.timeout)

    @property
    def needs_key(self) -> bool:
        """Whether the provider requires a key."""
        return True

    @property
    def concurrency(self) -> int:  # type: ignore[override]
        """Enough that one slow response at the front of the queue delays no other request."""
        return 8 * self.max_concurrency

    @abstractmethod
    def connect(self, clients: "Clients") -> AbstractAsyncContextManager[Connection]:
        """Open the SDK's clients, made with ``clients``."""

    def check(self) -> None:
        """Raise RebaseError if the key is missing or malformed. Sends nothing."""
        instruction = (
            f"set the environment variable {self.key_variable}, or write it into conf/local/credentials.yml "
            f"(an --env other than local reads its own folder instead) as\n  teacher:\n    {self.provider}: YOUR_KEY"
        )
        if not self.api_key:
            if self.needs_key:
                raise RebaseError(f"The teacher {self.provider}/{self.model} needs an API key: {instruction}")
        elif any(character.isspace() for character in self.api_key):
            raise RebaseError(f"The API key of {self.provider}/{self.model} contains white space: {instruction}")

    @asynccontextmanager
    async def open(self) -> AsyncIterator["ApiSession"]:
        """Check the key and open the clients."""
        self.check()
        limiter, concurrency = RateLimiter(), Concurrency(self.max_concurrency)
        async with AsyncExitStack() as stack:
            clients = Clients(self, limiter, concurrency, stack)
            connection = await stack.enter_async_context(self.connect(clients))
            yield ApiSession(self, connection, limiter, concurrency)

    @asynccontextmanager
    async def open_batches(self, cache: ResponseCache) -> AsyncIterator[BatchSession]:
        """Open the clients, to send requests by batches."""
        async with self.open() as session:
            yield BatchSession(session.connection.batches, self, session.connection.sdk, cache, session.thinking_tokens)

    def raise_if_final(self, error: Exception, sdk: Any, *, is_reached: bool = False) -> None:
        """Raise RebaseError if every further request would fail too: wrong key, no credit, wrong model or address.

        ``is_reached`` says that the provider has responded before, so that the address is right.
        """
        message = self.describe(error)
        status = getattr(error, "status_code", None)
        if status in _FINAL_STATUSES or _means_no_credit(status, f"{message} {getattr(error, 'body', '')}"):
            raise RebaseError(
                f"The teacher {self.provider}/{self.model} returns status {status}: {message}\n"
                f"Check the model's name (teacher.model in globals.yml), the key ({self.key_variable}, or "
                f"credentials.yml) and the account's credit. {_RESUME}"
            ) from None
        if type(error) is sdk.APIConnectionError and not is_reached:
            raise RebaseError(
                f"The teacher {self.provider}/{self.model} cannot be reached at {self.base_url or 'its address'}: "
                f"{message}\nCheck the network and teacher.base_url in globals.yml. {_RESUME}"
            ) from None

    def describe(self, error: Exception) -> str:
        """Return the provider's error message, without the key."""
        return self.redact(_error_message(error))

    def redact(self, text: str) -> str:
        """Remove the key, which some servers repeat in their errors."""
        return text.replace(self.api_key, "***") if self.api_key else text


class Clients:
    """Makes the SDKs' HTTP clients: every attempt waits for the rate limits, every response updates them."""

    def __init__(
        self, teacher: ApiTeacher, limiter: RateLimiter, concurrency: Concurrency, stack: AsyncExitStack
    ) -> None:
        self._teacher = teacher
        self._limiter = limiter
        self._concurrency = concurrency
        self._stack = stack

    async def make(self, client: type, http_client: type, **arguments: Any) -> list[Any]:
        """Return as many clients as the concurrent requests need; they are closed with the session."""
        import httpx2

        context = httpx2.create_ssl_context()
        clients = []
        for _ in range(max(1, -(-self._teacher.max_concurrency // _POOL))):
            http = http_client(
                verify=context,
                # Spare connections: some are being closed, and requests are spread unevenly.
                limits=httpx2.Limits(
                    max_connections=4 * _POOL, max_keepalive_connections=2 * _POOL, keepalive_expiry=30
                ),
                event_hooks={"request": [self._before], "response": [self._after]},
            )
            timeout = httpx2.Timeout(self._teacher.timeout, connect=10)
            clients.append(client(http_client=http, timeout=timeout, max_retries=RETRIES, **arguments))
            await self._stack.enter_async_context(clients[-1])
        return clients

    async def _before(self, request: "httpx2.Request") -> None:
        call = _call.get(None)
        if call is None:
            return
        if call.sent_at:  # the SDK repeats it
            taken = await self._limiter.acquire(call.cost)
            if taken is None:
                raise asyncio.CancelledError
            call.taken = taken
        call.sent_at = time.monotonic()

    async def _after(self, http_response: "httpx2.Response") -> None:
        status, headers = http_response.status_code, http_response.headers
        call = _call.get(None)
        if call is None:
            self._limiter.update(status, headers, {})
        else:
            self._limiter.update(status, headers, call.taken, time.monotonic() - call.sent_at)
        if status in OVERLOADED:
            self._concurrency.report_overload()
            if _means_no_credit(status, (await http_response.aread()).decode(errors="replace")):
                headers["x-should-retry"] = "false"
            elif (wait := read_retry_after(headers)) is None or wait > _LONG_WAIT:
                for name in ("retry-after", "retry-after-ms"):
                    headers.pop(name, None)


class ApiSession(Session):
    """An open hosted teacher."""

    def __init__(
        self, teacher: ApiTeacher, connection: Connection, limiter: RateLimiter, concurrency: Concurrency
    ) -> None:
        self.connection = connection
        self.thinking_tokens = connection.thinking_tokens
        self._teacher = teacher
        self._limiter = limiter
        self._concurrency = concurrency
        self._has_warned_of_temperature = connection.temperature
        self._failures_in_a_row = 0
        self._tokens_per_character = 0.3
        self._output_tokens: float | None = None

    async def generate(self, request: Request) -> Response | Failure:
        """Send the request as soon as concurrency and rate limits allow, and return the response.

        Raises:
            RebaseError: No further request could succeed (wrong key, no credit), or too many have failed in a row.

        """
        key = request.key(self._teacher.provider, self._teacher.model)
        async with self._concurrency.slot() as may_send:
            cost = self._expected_cost(request)
            taken = await self._limiter.acquire(cost) if may_send else None
            if taken is None:
                return Failure(key, "not sent", "stopped")
            call = _Call(cost, taken)
            _call.set(call)
            self._warn_of_temperature(request)
            try:
                outcome = await self._send(request, key, call)
                if isinstance(outcome, Failure) and outcome.reason.startswith(_UNREADABLE):
                    outcome = await self._send(request, key, call)  # the SDKs do not repeat it
                self._learn(request, call, outcome)
            except RebaseError:
                self.stop()  # before the next waiting request gets this slot
                raise
        return outcome

    def stop(self) -> None:
        """Send no more requests."""
        self._concurrency.close()
        self._limiter.close()

    def _expected_cost(self, request: Request) -> Cost:
        limit = request.sampling.max_tokens + self.thinking_tokens
        output = min(limit, self._output_tokens if self._output_tokens is not None else limit)
        return Cost(request.characters * self._tokens_per_character, output, limit)

    async def _send(self, request: Request, key: str, call: _Call) -> Response | Failure:
        sdk = self.connection.sdk
        try:
            http_response = await self.connection.send(request)
        except (sdk.APIError, ValueError) as error:  # ValueError: text that is not Unicode
            self._teacher.raise_if_final(error, sdk, is_reached=self._output_tokens is not None)
            status = getattr(error, "status_code", None)
            message = self._teacher.describe(error)
            return Failure(key, f"status {status}: {message}" if status else message)
        try:
            response = self.connection.read(http_response.json(), key)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            excerpt = self._teacher.redact(http_response.text)[:300]
            return Failure(key, f"{_UNREADABLE} of the {self._teacher.provider} API: {excerpt}")
        return replace(response, text=well_formed(response.text), seconds=time.monotonic() - call.sent_at)

    def _learn(self, request: Request, call: _Call, outcome: Response | Failure) -> None:
        """Count failures in a row, and update the rate limits and the expected tokens."""
        if isinstance(outcome, Failure):
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= FAILURES_TO_STOP:
                raise RebaseError(
                    f"The teacher {self._teacher.provider}/{self._teacher.model} does not work: "
                    f"{self._failures_in_a_row} requests in a row failed. The last error: {outcome.reason}\n{_RESUME}"
                )
            return
        self._failures_in_a_row = 0
        self._concurrency.report_success()
        actual = Cost(outcome.input_tokens, outcome.output_tokens, call.cost.reserved_tokens)
        self._limiter.correct(call.cost, actual)
        ratio = outcome.input_tokens / max(1, request.characters)
        self._tokens_per_character += _SMOOTHING * (ratio - self._tokens_per_character)
        expected = self._output_tokens if self._output_tokens is not None else outcome.output_tokens
        self._output_tokens = expected + _SMOOTHING * (outcome.output_tokens - expected)

    def _warn_of_temperature(self, request: Request) -> None:
        if not self._has_warned_of_temperature and request.sampling.temperature != 1:
            self._has_warned_of_temperature = True
            logger.warning(
                "%s/%s accepts no temperature and samples at its own; %s is ignored.",
                self._teacher.provider, self._teacher.model, request.sampling.temperature,
            )  # fmt: skip


def _means_no_credit(status: int | None, text: str) -> bool:
    return status in (400, 429) and any(words in text for words in _NO_CREDIT)


def _error_message(error: Exception) -> str:
    """Return the provider's message, or else the body, or else the SDK's message and its cause."""
    body = getattr(error, "body", None)
    # One SDK keeps the whole body, {"error": {"message": ...}}; the other keeps what is inside.
    inner = body.get("error", body) if isinstance(body, dict) else body
    message = inner.get("message") if isinstance(inner, dict) else inner
    if isinstance(message, str) and message.strip():
        return message.strip()
    cause = f" ({error.__cause__})" if error.__cause__ else ""
    return f"{str(error) or type(error).__name__}{cause}"
