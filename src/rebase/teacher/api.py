"""What the teachers behind an HTTP API share: the key, requests in flight, and what to do when one fails."""

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from rebase.errors import RebaseError
from rebase.teacher.protocol import Failure, Reply, Request, ignore

logger = logging.getLogger(__name__)

#: Requests in flight at once.
WINDOW = 8
#: How often an SDK repeats a request after a transport error, 408, 409, 429 or 5xx, with its own backoff.
RETRIES = 4
#: Tokens granted on top of ``max_tokens`` to a model that cannot be kept from thinking: its thoughts count too.
THINKING_TOKENS = 4096
#: HTTP statuses that every further request would get as well: wrong key, no credit, no permission, no such model.
_FINAL_STATUSES = frozenset({401, 402, 403, 404})


@dataclass(frozen=True)
class Connection:
    """An SDK's open client, as a session needs it.

    ``sdk`` is the SDK's module (it names the error types), ``send`` asks one request and gives the SDK's response,
    ``read`` makes a Reply of the response and the request's key. ``temperature`` says if the model takes one.
    """

    sdk: Any
    send: Callable[[Request], Any]
    read: Callable[[Any, str], Reply]
    temperature: bool


@dataclass(frozen=True)
class ApiTeacher(ABC):
    """A handle of a hosted model; ``base_url`` replaces the address that the SDK knows."""

    model: str
    api_key: str | None = field(default=None, repr=False)
    base_url: str | None = None

    #: The provider's name in requests' keys, parameters and credentials.
    provider: ClassVar[str]
    #: The environment variable that holds the key.
    key_variable: ClassVar[str]

    @property
    def needs_key(self) -> bool:
        """If a key is a must."""
        return True

    @abstractmethod
    def connect(self) -> AbstractContextManager[Connection]:
        """Open the SDK's client; it is closed at the end."""

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

    @contextmanager
    def open(self) -> Iterator["ApiSession"]:
        """Check the key and open the client; at the end requests in flight are waited for, and the client closed."""
        from tqdm import tqdm

        self.check()
        with (
            self.connect() as connection,
            tqdm(desc=f"teacher {self.model}", unit="reply") as progress,
            ThreadPoolExecutor(WINDOW, thread_name_prefix="teacher") as pool,
        ):
            try:
                yield ApiSession(self, connection, pool, progress.update)
            finally:
                pool.shutdown(cancel_futures=True)

    def reason(self, error: Exception, sdk: Any) -> str:
        """Why a request failed, in the provider's own words and never with the key.

        RebaseError where every further request would fail as well: key, model or address are wrong.
        """
        words = self.without_key(_words(error))
        status = getattr(error, "status_code", None)
        if status in _FINAL_STATUSES:
            raise RebaseError(
                f"The teacher {self.provider}/{self.model} answers with status {status}: {words}\n"
                f"Check the model's name (teacher.model in globals.yml) and the key ({self.key_variable}, or "
                "credentials.yml). Replies that had arrived are stored: a new run goes on from there."
            ) from None
        if type(error) is sdk.APIConnectionError:
            raise RebaseError(
                f"The teacher {self.provider}/{self.model} cannot be reached at {self.base_url or 'its address'}: "
                f"{words}\nCheck the network and teacher.base_url in globals.yml. Replies that had arrived are "
                "stored: a new run goes on from there."
            ) from None
        return f"status {status}: {words}" if status else words

    def without_key(self, text: str) -> str:
        """The text with the key blotted out: some servers repeat it in their complaint."""
        return text.replace(self.api_key, "***") if self.api_key else text


class ApiSession:
    """An open hosted teacher."""

    def __init__(
        self,
        teacher: ApiTeacher,
        connection: Connection,
        pool: ThreadPoolExecutor,
        progress: Callable[[], Any],
    ) -> None:
        self._teacher = teacher
        self._connection = connection
        self._pool = pool
        self._progress = progress
        self._told_of_temperature = connection.temperature

    def ask(
        self, requests: Iterable[Request], arrived: Callable[[Request, Reply], None] = ignore
    ) -> Iterator[Reply | Failure]:
        """Answer each request in the order given, ``WINDOW`` of them at a time.

        ``arrived`` is told of each reply as soon as it is there, which may be before its turn, in a thread of its
        own. RebaseError where no further request could succeed.
        """
        window: deque[Future[Reply | Failure]] = deque()
        try:
            for request in requests:
                window.append(self._pool.submit(self._answer, request, arrived))
                if len(window) == WINDOW:
                    yield window.popleft().result()
            while window:
                yield window.popleft().result()
        finally:
            for future in window:
                future.cancel()

    def _answer(self, request: Request, arrived: Callable[[Request, Reply], None]) -> Reply | Failure:
        key = request.key(self._teacher.provider, self._teacher.model)
        self._tell_of_temperature(request)
        answer = self._send(request, key)
        if isinstance(answer, Reply):
            arrived(request, answer)
        self._progress()
        return answer

    def _send(self, request: Request, key: str) -> Reply | Failure:
        sdk = self._connection.sdk
        try:
            response = self._connection.send(request)
        except (sdk.APIError, ValueError) as error:  # ValueError: a body that is not JSON, text that is not Unicode
            return Failure(key, self._teacher.reason(error, sdk))
        try:
            reply = self._connection.read(response, key)
        except (AttributeError, IndexError, TypeError):
            # The SDKs do not validate responses: what is missing shows when it is read.
            excerpt = self._teacher.without_key(str(response))[:300]
            return Failure(key, f"not a response of the {self._teacher.provider} API: {excerpt}")
        return replace(reply, text=_well_formed(reply.text))

    def _tell_of_temperature(self, request: Request) -> None:
        if not self._told_of_temperature and request.sampling.temperature != 1:
            self._told_of_temperature = True
            logger.warning(
                "%s/%s takes no temperature: it samples at its own, %s is left out.",
                self._teacher.provider,
                self._teacher.model,
                request.sampling.temperature,
            )


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


def _well_formed(text: str) -> str:
    """The text with half surrogate pairs replaced: JSON can carry them, UTF-8 (and so the store) cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
