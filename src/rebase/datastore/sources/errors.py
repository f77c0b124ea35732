"""Why a dataset was not read."""


class TooLargeError(Exception):
    """Data that would not fit the memory once it is unpacked."""


def why_unread(error: Exception) -> str:
    """The kind of an error while a dataset was read.

    One of: gated, missing, script, unreachable, unreadable (its files are gone, or may not be opened), too_large,
    malformed. What is gated, missing, unreachable or unreadable today may be had tomorrow.
    """
    from datasets.exceptions import DatasetNotFoundError
    from httpx2 import HTTPError
    from huggingface_hub import errors as hub

    found = causes(error)
    if "scripts are no longer supported" in str(error):
        return "script"
    kinds: dict[str, tuple[type[BaseException], ...]] = {
        "gated": (hub.GatedRepoError,),
        "missing": (hub.RepositoryNotFoundError, hub.RevisionNotFoundError, DatasetNotFoundError),
        "unreachable": (HTTPError, hub.LocalEntryNotFoundError, ConnectionError, TimeoutError),
        "too_large": (TooLargeError, MemoryError),
    }
    for kind, types in kinds.items():
        if any(isinstance(cause, types) for cause in found):
            return kind
    # Readers raise OSError for corrupt content too, but the system's own errors have a number.
    return "unreadable" if any(isinstance(cause, OSError) and cause.errno for cause in found) else "malformed"


def causes(error: BaseException | None) -> list[BaseException]:
    """The error and what it came from, outermost first."""
    return [error, *causes(error.__cause__ or error.__context__)] if error else []
