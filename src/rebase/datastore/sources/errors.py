"""Reasons why a dataset could not be read, and retries of requests that may succeed later."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rebase.errors import RebaseError
from rebase.teacher.http import read_retry_after

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Seconds before each retry of a hub request; more if the hub says so, up to the longest wait.
WAITS = (1.0, 2.0, 4.0)
_LONGEST_WAIT = 600.0
#: When the time of the dataset that is being read ends, by the monotonic clock.
_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


class TooLargeError(Exception):
    """Data that would not fit into memory when it is decompressed."""


class TooSlowError(Exception):
    """A dataset that takes longer than it may."""


class NoDataFilesError(RebaseError):
    """A dataset or config without files that can be read."""


def failure_reason(error: Exception) -> str:
    """Classify an error that was raised while a dataset was read.

    Returns one of: gated, missing, script, unreachable, unreadable (its files are gone, or access is denied),
    too_large, too_slow, no_data_files, malformed. The reasons gated, missing, unreachable, unreadable and too_slow may
    be temporary.
    """
    from datasets.exceptions import DatasetNotFoundError
    from httpx2 import HTTPError
    from huggingface_hub import errors as hub

    if "scripts are no longer supported" in str(error):
        return "script"
    reasons: dict[str, tuple[type[BaseException], ...]] = {
        "gated": (hub.GatedRepoError,),
        "missing": (hub.RepositoryNotFoundError, hub.RevisionNotFoundError, DatasetNotFoundError),
        "unreachable": (HTTPError, hub.LocalEntryNotFoundError, ConnectionError, TimeoutError),
        "too_slow": (TooSlowError,),
        "too_large": (TooLargeError, MemoryError),
        "no_data_files": (NoDataFilesError,),
    }
    chain = causes(error)
    for reason, types in reasons.items():
        if any(isinstance(cause, types) for cause in chain):
            return reason
    # Readers raise OSError for corrupt content too, but the errors of the operating system have a number.
    return "unreadable" if any(isinstance(cause, OSError) and cause.errno for cause in chain) else "malformed"


def causes(error: BaseException | None) -> list[BaseException]:
    """The error and its causes, outermost first."""
    return [error, *causes(error.__cause__ or error.__context__)] if error else []


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Let ``check_time`` fail after so many seconds, in this thread."""
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def check_time() -> None:
    """Raise TooSlowError if the time limit is over. Called between files, rows and requests."""
    if time.monotonic() > _deadline.get():
        raise TooSlowError("reading takes too long: name fewer files in the card, or store them as Parquet")


def with_retries(request: Callable[[], Result]) -> Result:
    """Send a request to the hub; retry if the hub is busy (429, after the time it names), fails (5xx) or disconnects.

    An unreachable hub is not retried: each of thousands of datasets would wait for nothing. ``huggingface_hub`` retries
    by itself while it reads files, but not requests for a dataset's info or files. With tenacity, which is no
    dependency, the code would be as long: each response names its wait, and the dataset's time limit ends it.
    """
    for wait in WAITS:
        try:
            return request()
        except Exception as error:
            requested_wait = _requested_wait(error)
            if requested_wait is None or requested_wait > _LONGEST_WAIT:
                raise
            logger.info("hub: %s; retry in %.0f s", error, max(wait, requested_wait))
            time.sleep(max(wait, requested_wait))
            check_time()
    return request()


def _requested_wait(error: Exception) -> float | None:
    """The seconds that the hub asks to wait, 0 if it names none; None if a retry would not help."""
    from httpx2 import ReadError, ReadTimeout, RemoteProtocolError
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    for cause in causes(error):
        if isinstance(cause, ReadError | ReadTimeout | RemoteProtocolError):
            return 0.0
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            if cause.response.status_code not in (408, 429, 500, 502, 503, 504):
                return None
            limit = parse_ratelimit_headers(cause.response.headers)
            if limit is not None and limit.remaining == 0:
                return float(limit.reset_in_seconds)
            return read_retry_after(cause.response.headers) or 0.0
    return None
