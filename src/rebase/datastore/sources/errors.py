"""Reasons why a dataset could not be read."""


class TooLargeError(Exception):
    """Data that would not fit into memory when it is decompressed."""


def failure_reason(error: Exception) -> str:
    """Classify an error that was raised while a dataset was read.

    Returns one of: gated, missing, script, unreachable, unreadable (its files are gone, or access is denied),
    too_large, malformed. The reasons gated, missing, unreachable and unreadable may be temporary.
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
        "too_large": (TooLargeError, MemoryError),
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
