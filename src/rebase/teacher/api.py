"""What the hosted teachers share: keys, HTTP clients, rate limiting, learning what a server accepts, and errors."""

import json
import logging
import math
import os
import re
import time
from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from itertools import chain
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import anyio

from rebase.errors import RebaseError
from rebase.teacher.batches import BatchApi, BatchSession
from rebase.teacher.dialects import UNKNOWN, Dialect, names_structure
from rebase.teacher.http import read_retry_after
from rebase.teacher.protocol import EMPTY_ADVICE, Failure, Request, Response, Session, Teacher, well_formed
from rebase.teacher.rate_limits import OVERLOADED, Concurrency, Cost, Kind, RateLimiter, cost_of
from rebase.teacher.response_cache import ResponseCache
from rebase.teacher.settings import Structure, TeacherSettings, server_address

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger(__name__)

#: How often an SDK repeats a request after a transport error, 408, 409, 429 or 5xx, with its own backoff.
RETRIES = 5
#: Tokens in addition to ``max_tokens`` for a model whose reasoning cannot be turned off: it counts as output.
THINKING_TOKENS = 4096
#: After this many failures or empty responses in a row the run stops.
FAILURES_TO_STOP = 10
#: HTTP statuses that every further request would get as well: wrong key, model or address, no credit or permission.
_FINAL_STATUSES = frozenset({401, 402, 403, 404, 405})
#: Statuses of a request that the server does not accept as it is.
_REJECTED_STATUSES = frozenset({400, 422})
#: A server with more to learn of contradicts itself.
_MOST_LESSONS = 8
#: What providers write, with other statuses, when the account has no credit.
_NO_CREDIT = re.compile(
    "insufficient_quota|credit_balance|credit balance is too low|spend_limit|usage_limit|billing_error"
    "|specified (workspace )?API usage limits"
)
#: The status that an error without one means, by its words; 400 for any other.
_STATUS_BY_WORDS = (
    (r"rate.?limit|too many|overloaded|capacity", 429),
    (r"server.?error|api_error|internal|unavailable|timeout", 500),
    (r"invalid.api.key|authentication|unauthorized", 401),
)
#: Connections per client: its pool searches all of them for each request.
_POOL = 16
#: Characters of a server's message, which may be a page of HTML.
_LONGEST_MESSAGE = 1000
#: A shorter value of a header is no secret, and may be part of any word.
_SHORTEST_SECRET = 8
#: The SDKs give up on a longer or unreadable ``retry-after``, or wait for weeks; it is hidden from them.
_LONG_WAIT = 60.0
#: The most bytes of a response's body, decompressed; a batch has many thousands of responses.
MOST_BYTES, MOST_BATCH_BYTES = 2**23, 2**29
#: A run that has waited for rate limits for this many times the timeout, without a response, ends.
PATIENCE = 5
_UNREADABLE = "not a response"
_RESUME = "Responses received so far are cached: run again to continue."
#: The weight of a new response in the moving averages of expected tokens.
_SMOOTHING = 0.1


@dataclass
class _Call:
    """A request that is being sent: its expected cost, most output tokens, what was taken by then, its deadline.

    ``sent_at`` is its last start, ``error`` the provider's last error, ``ended`` why it may not be sent again.
    """

    key: str
    cost: Cost
    limit: int
    taken: dict[Kind, float]
    deadline: anyio.CancelScope
    sent_at: float = 0.0
    error: str = ""
    ended: RebaseError | Failure | None = None


#: The call of the running task, for the hooks of the SDK's HTTP client.
_call: ContextVar[_Call] = ContextVar("call")


class _Learned:
    """What a run has learned of a server. All sessions of a teacher share it, in all threads."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.dialect = UNKNOWN
        self.lessons = 0
        self.messages: set[str] = set()


@dataclass(frozen=True)
class ApiTeacher(Teacher):
    """A handle of a hosted model. ``base_url`` replaces the SDK's default address.

    ``timeout`` bounds the seconds of a whole response, with its retries, but without waits for rate limits.

    A provider implements the abstract methods, and ``raise_if_final`` tells its errors.
    """

    model: str
    api_key: str | None = field(default=None, repr=False)
    base_url: str | None = None
    max_concurrency: int = 64
    timeout: float = 120.0
    structured_output: Structure | Literal["auto"] = "auto"
    extra_body: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    learned: _Learned = field(default_factory=_Learned, init=False, repr=False, compare=False)

    is_hosted: ClassVar[bool] = True
    #: The environment variable of the key.
    key_variable: ClassVar[str]
    #: The path of requests, after the base address; and how base addresses end.
    path: ClassVar[str]
    address_ending: ClassVar[str] = ""

    @classmethod
    def from_settings(cls, settings: TeacherSettings, *, key: str | None, **_: Any) -> Self:
        """Create the teacher from the settings and its key. The SDKs read an address from the environment too."""
        base_url = settings.base_url or os.environ.get(cls.key_variable.replace("API_KEY", "BASE_URL")) or None
        return cls(
            settings.model, key, base_url, settings.max_concurrency, settings.timeout, settings.structured_output,
            settings.extra_body, settings.headers,
        )  # fmt: skip

    @property
    def address(self) -> str:  # type: ignore[override]
        """The server, if it is not the provider's own, and what ``extra_body`` adds."""
        return server_address(self.base_url, self.extra_body)

    @property
    def needs_key(self) -> bool:
        """Whether the provider requires a key."""
        return True

    @property
    def concurrency(self) -> int:  # type: ignore[override]
        """Enough that one slow response at the front of the queue delays no other request."""
        return 8 * self.max_concurrency

    @property
    def dialect(self) -> Dialect:
        """What the server accepts, as far as this run knows."""
        return self.learned.dialect

    @abstractmethod
    def sdk(self) -> tuple[Any, type, type]:
        """Return the SDK's module, which defines the error types, its client and its HTTP client."""

    @abstractmethod
    async def first_dialect(self, client: Any) -> Dialect:
        """Return what the model accepts by its name or by the provider's model list."""

    @abstractmethod
    def arguments(self, dialect: Dialect, request: Request) -> dict[str, Any]:
        """Return the body of a translated request, without ``dialect.arguments`` and ``extra_body``."""

    @abstractmethod
    def read(self, body: dict[str, Any], key: str) -> Response:
        """Make a response of the JSON body. May raise LookupError, TypeError, AttributeError or ValueError."""

    @abstractmethod
    def batches(self, client: Any) -> BatchApi:
        """Return the provider's batch API."""

    def body(self, request: Request) -> dict[str, Any]:
        """Return the body of a request, as the server accepts it."""
        dialect = self.dialect
        return {**dialect.arguments, **self.arguments(dialect, dialect.translate(request)), **self.extra_body}

    def learn(self, used: Dialect, error: str) -> bool:
        """Adopt what an error says that the server does not accept, and log it once.

        ``used`` is the dialect of the rejected request. Returns whether the request may be sent again.
        """
        learned, is_free = self.learned, self.structured_output == "auto" and "response_format" not in self.extra_body
        with learned.lock:
            if used != learned.dialect:  # another request was first
                return True
            adapted = used.adapt(error, may_change_structure=is_free)
            if adapted is None or learned.lessons == _MOST_LESSONS:
                return False
            learned.dialect, message = adapted
            learned.lessons += 1
        if message:
            self.say_once(f"{message} for the rest of the run.")
        return True

    def say_once(self, message: str) -> None:
        """Log a message about the server once in a run."""
        if message not in self.learned.messages:
            self.learned.messages.add(message)
            logger.warning("%s/%s: %s", self.provider, self.model, message)

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
        import httpx2

        self.check()
        module, client, http_client = self.sdk()
        session = ApiSession(self, module)
        context = httpx2.create_ssl_context()
        async with AsyncExitStack() as stack:
            for _ in range(-(-self.max_concurrency // _POOL)):
                http = http_client(
                    verify=context,
                    follow_redirects=False,  # they would take the prompt and our headers to another server
                    # Spare connections: some are being closed, and requests are spread unevenly.
                    limits=httpx2.Limits(
                        max_connections=4 * _POOL, max_keepalive_connections=2 * _POOL, keepalive_expiry=30
                    ),
                    event_hooks={"request": [session.before_sending], "response": [session.after_response]},
                )
                arguments = {"api_key": self.api_key or "none", "base_url": self.base_url, "max_retries": RETRIES}
                timeout = httpx2.Timeout(self.timeout, connect=10)
                opened = client(http_client=http, timeout=timeout, default_headers=self.headers, **arguments)
                session.clients.append(await stack.enter_async_context(opened))
            if self.learned.dialect is UNKNOWN:
                self.learned.dialect = await self.first_dialect(session.clients[0])
            yield session

    @asynccontextmanager
    async def open_batches(self, cache: ResponseCache) -> AsyncIterator[BatchSession]:
        """Open the clients, to send requests by batches."""
        async with self.open() as session:
            yield BatchSession(self.batches(session.clients[0]), self, session.sdk, cache)

    def raise_if_final(self, error: Exception, sdk: Any, *, is_reached: bool = False) -> None:
        """Raise RebaseError if every further request would fail too: wrong key, no credit, wrong model or address.

        ``is_reached`` says that the provider has responded before, so that the address is right.
        """
        message = self.describe(error)
        status, response = getattr(error, "status_code", None), getattr(error, "response", None)
        if response is not None and response.has_redirect_location:
            location = server_address(str(response.next_request.url), {}).removesuffix(self.path)
            raise RebaseError(
                f"The teacher {self.provider}/{self.model} at {server_address(self.base_url, {}) or 'its address'} "
                f"redirects to {location}, which gets neither the prompts nor the key: set teacher.base_url in "
                f"globals.yml to that, if it is right. {_RESUME}"
            ) from None
        if status in _FINAL_STATUSES or _means_no_credit(status, f"{message} {getattr(error, 'body', '')}"):
            raise RebaseError(
                f"The teacher {self.provider}/{self.model} returns status {status}: {message}\n"
                f"{self._explain_address(status)}Check the model's name (teacher.model in globals.yml), the key "
                f"({self.key_variable}, or credentials.yml) and the account's credit. {_RESUME}"
            ) from None
        if type(error) is sdk.APIConnectionError and not is_reached and not _is_malformed(error.__cause__):
            raise RebaseError(
                f"The teacher {self.provider}/{self.model} cannot be reached at "
                f"{server_address(self.base_url, {}) or 'its address'}: "
                f"{message}\nCheck the network and teacher.base_url in globals.yml. {_RESUME}"
            ) from None

    def _explain_address(self, status: int | None) -> str:
        """Return what is likely wrong with ``base_url`` if the server does not know the path of requests."""
        address = server_address(self.base_url, {})
        if status not in (404, 405) or not address:
            return ""
        expected = address.removesuffix("/v1") + self.address_ending
        advice = "check teacher.base_url" if expected == address else f"set teacher.base_url to {expected}"
        return f"Requests go to {address}{self.path}: {advice}. "

    def describe(self, error: Exception) -> str:
        """Return the provider's error message without keys, or else the SDK's and its cause."""
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        words = error_words(getattr(error, "body", None)) or f"{str(error) or type(error).__name__}{cause}"
        return self.redact(words)

    def redact(self, text: str) -> str:
        """Remove the key, and the values of headers and their words, which some servers repeat in their errors."""
        words = chain.from_iterable(value.split() for value in self.headers.values())  # "Bearer KEY"
        for secret in (self.api_key, *self.headers.values(), *words):
            if secret and (secret == self.api_key or len(secret) >= _SHORTEST_SECRET):
                text = text.replace(secret, "***")
        return text


class ApiSession(Session):
    """An open hosted teacher. Every attempt waits for the rate limits, and every response updates them."""

    def __init__(self, teacher: ApiTeacher, sdk: Any) -> None:
        self.sdk = sdk
        self.clients: list[Any] = []
        self._next = 0
        self._teacher = teacher
        self._limiter = RateLimiter(patience=PATIENCE * teacher.timeout)
        self._last_overload = ""
        self._concurrency = Concurrency(teacher.max_concurrency)
        self._failures_in_a_row = 0
        self._tokens_per_character = 0.3
        self._output_tokens: float | None = None

    @property
    def thinking_tokens(self) -> int:  # type: ignore[override]
        """Tokens that a response may have beyond ``max_tokens``."""
        return self._teacher.dialect.thinking_tokens

    async def generate(self, request: Request) -> Response | Failure:
        """Send the request as soon as concurrency and rate limits allow, and return the response.

        Raises RebaseError if no further request could succeed (wrong key, no credit), or too many failed in a row.
        """
        key = self._teacher.key(request)
        async with self._concurrency.slot() as may_send:
            limit = request.sampling.max_tokens + self.thinking_tokens
            output = limit if self._output_tokens is None else min(limit, self._output_tokens)
            cost = cost_of(request.characters * self._tokens_per_character, output, limit)
            try:
                taken = await self._acquire(cost) if may_send else None
                if taken is None:
                    return Failure(key, "not sent", "stopped")
                call = _Call(key, cost, limit, taken, anyio.move_on_after(self._teacher.timeout))
                _call.set(call)
                outcome = await self._send_in_time(request, call)
                self._count(request, call, outcome)
            except RebaseError:
                self.stop()  # before the next waiting request gets this slot
                raise
        return outcome

    def stop(self) -> None:
        """Send no more requests."""
        self._concurrency.close()
        self._limiter.close()

    async def before_sending(self, _: "httpx2.Request") -> None:
        """Wait for the rate limits if the SDK repeats a request. A hook of the HTTP client."""
        call = _call.get(None)
        if call is None:
            return
        if call.sent_at:
            left, call.deadline.deadline = call.deadline.deadline - anyio.current_time(), math.inf
            ended: RebaseError | Failure = Failure(call.key, "not sent again", "stopped")
            try:
                taken = await self._acquire(call.cost)
            except RebaseError as error:
                taken, ended = None, error
            if taken is None:  # the SDK would repeat the request after any error
                call.ended = ended
                call.deadline.cancel()
                await anyio.sleep_forever()
            else:
                call.taken, call.deadline.deadline = taken, anyio.current_time() + left
        call.sent_at = time.monotonic()

    async def after_response(self, http_response: "httpx2.Response") -> None:
        """Read a response, and update rate limits and concurrency by it. A hook of the HTTP client."""
        import httpx2

        headers, call = http_response.headers, _call.get(None)
        try:
            await read_body(http_response, MOST_BYTES if call else MOST_BATCH_BYTES)
        except httpx2.HTTPError as error:
            if call:
                call.error = str(error)
            raise
        if call and http_response.status_code == 200:
            http_response.status_code = find_status(http_response.content)  # the SDK repeats it, or raises it
        status = http_response.status_code
        taken, seconds = (call.taken, time.monotonic() - call.sent_at) if call else ({}, 0.0)
        self._limiter.update(status, headers, taken, seconds)
        if call and status >= 400:
            call.error = f"status {status}: {self._teacher.redact(_words_in(http_response))}"
        if status in OVERLOADED:
            self._concurrency.report_overload()
            self._last_overload = call.error if call else ""
            if _means_no_credit(status, http_response.text):
                headers["x-should-retry"] = "false"
            elif call or (wait := read_retry_after(headers)) is None or wait > _LONG_WAIT:
                for name in ("retry-after", "retry-after-ms"):  # the limiter waits, and the SDK's wait has a deadline
                    headers.pop(name, None)

    async def _acquire(self, cost: Cost) -> dict[Kind, float] | None:
        """Wait for the rate limits; None if the session is stopped. Raises RebaseError if the wait is too long."""
        try:
            return await self._limiter.acquire(cost)
        except TimeoutError as error:
            raise RebaseError(
                f"The teacher {self._teacher.provider}/{self._teacher.model} does not respond: {error}. "
                f"{self._last_overload or 'These are the limits in the headers of its responses.'}\nA run without any "
                f"response waits {PATIENCE} times teacher.timeout: wait or raise that, or see the account's limits. "
                f"{_RESUME}"
            ) from None

    async def _send_in_time(self, request: Request, call: _Call) -> Response | Failure:
        """Send the request; a Failure after the deadline."""
        with call.deadline:
            outcome = await self._send(request, call)
            if isinstance(outcome, Failure) and outcome.reason.startswith(_UNREADABLE):
                outcome = await self._send(request, call)  # the SDKs do not repeat it
            return outcome
        if isinstance(call.ended, RebaseError):
            raise call.ended
        if call.ended:
            return call.ended
        late = f"no whole response within {self._teacher.timeout:g} seconds (teacher.timeout)"
        return Failure(call.key, f"{late}; the last error: {call.error}" if call.error else late)

    async def _send(self, request: Request, call: _Call) -> Response | Failure:
        import httpx2

        teacher, key = self._teacher, call.key
        while True:
            dialect = teacher.dialect
            if not dialect.temperature and request.sampling.temperature != 1:
                ignored = f"accepts no temperature and samples at its own; {request.sampling.temperature} is ignored."
                teacher.say_once(ignored)
            self._next += 1
            client = self.clients[self._next % len(self.clients)]
            try:
                http_response = await client.post(teacher.path, body=teacher.body(request), cast_to=httpx2.Response)
                break
            except (self.sdk.APIError, ValueError) as error:  # ValueError: text that is not Unicode
                teacher.raise_if_final(error, self.sdk, is_reached=self._output_tokens is not None)
                status, message = getattr(error, "status_code", None), teacher.describe(error)
                if status in _REJECTED_STATUSES and teacher.learn(dialect, f"{message} {getattr(error, 'body', '')}"):
                    continue
                if status in _REJECTED_STATUSES and names_structure(message) and teacher.structured_output != "auto":
                    message += f" (teacher.structured_output is {teacher.structured_output}: set it to auto)"
                return Failure(key, f"status {status}: {message}" if status else message)
        try:
            response = teacher.read(http_response.json(), key)
        except (AttributeError, LookupError, TypeError, ValueError, RecursionError):
            excerpt = teacher.redact(http_response.text)[:300]
            return Failure(key, f"{_UNREADABLE} of the {teacher.provider} API: {excerpt}")
        return replace(response, text=well_formed(response.text), seconds=time.monotonic() - call.sent_at)

    def _count(self, request: Request, call: _Call, outcome: Response | Failure) -> None:
        """Count failures in a row, and update the rate limits and the expected tokens."""
        if isinstance(outcome, Failure) and outcome.kind == "stopped":
            return
        if isinstance(outcome, Failure) or outcome.is_empty:
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= FAILURES_TO_STOP:
                reason = outcome.reason if isinstance(outcome, Failure) else f"the response is empty. {EMPTY_ADVICE}"
                raise RebaseError(
                    f"The teacher {self._teacher.provider}/{self._teacher.model} does not work: "
                    f"{self._failures_in_a_row} requests in a row failed. The last error: {reason}\n{_RESUME}"
                )
        else:
            self._failures_in_a_row = 0
        if isinstance(outcome, Failure):
            return
        self._limiter.waited = 0.0
        self._concurrency.report_success()
        actual = cost_of(outcome.input_tokens, outcome.output_tokens, call.limit)
        self._limiter.correct(call.cost, actual)
        ratio = outcome.input_tokens / max(1, request.characters)
        self._tokens_per_character += _SMOOTHING * (ratio - self._tokens_per_character)
        expected = self._output_tokens if self._output_tokens is not None else outcome.output_tokens
        self._output_tokens = expected + _SMOOTHING * (outcome.output_tokens - expected)


def find_status(content: bytes) -> int:
    """Return the status of a response that claims 200: that of the error in its body, if there is one."""
    try:
        body = json.loads(content) if b'"error"' in content else None
        if not isinstance(body, dict) or body.get("content"):
            return 200
        choice = body["choices"][0] if body.get("choices") else {}
        error = (
            body.get("error")
            or choice.get("error")
            or (body if "error" in (body.get("object"), body.get("type")) else None)
        )
        if not error or choice.get("message", {}).get("content"):
            return 200
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return 200
    for values in (error, body):
        for name in ("code", "status", "status_code"):
            code = str(values.get(name)) if isinstance(values, dict) else ""
            if re.fullmatch("[45][0-9][0-9]", code):
                return int(code)
    words = str(error).lower()
    return next((status for pattern, status in _STATUS_BY_WORDS if re.search(pattern, words)), 400)


async def read_body(http_response: "httpx2.Response", most: int) -> None:
    """Read the body, as ``aread`` does; raise httpx2.DecodingError if it has more than ``most`` bytes, decompressed."""
    import httpx2

    content = bytearray()
    async with aclosing(http_response.aiter_bytes()) as parts:
        async for part in parts:
            content += part
            if len(content) > most:
                raise httpx2.DecodingError(f"the body has more than {most:,} bytes")
    http_response._content = bytes(content)


def _is_malformed(cause: BaseException | None) -> bool:
    """Whether a connection failed by what the server wrote: it can be reached."""
    import httpx2

    return isinstance(cause, httpx2.RemoteProtocolError | httpx2.ReadError | httpx2.DecodingError)


def _words_in(http_response: "httpx2.Response") -> str:
    """Return the message of an error response."""
    try:
        return error_words(http_response.json()) or http_response.text[:_LONGEST_MESSAGE]
    except (ValueError, RecursionError):
        return http_response.text[:_LONGEST_MESSAGE]


def _means_no_credit(status: int | None, text: str) -> bool:
    return status in (400, 429) and _NO_CREDIT.search(text) is not None


def error_words(body: Any) -> str:
    """Return the message in the body of an error, whatever its shape; empty if there is none."""
    if isinstance(body, dict):
        return next((words for name in ("error", "message", "detail") if (words := error_words(body.get(name)))), "")
    return body.strip()[:_LONGEST_MESSAGE] if isinstance(body, str) else ""
