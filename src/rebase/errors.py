"""The error types for users."""

from collections.abc import Iterable
from difflib import get_close_matches
from traceback import walk_tb
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

#: What these packages raise themselves is about names, files and settings that the user gave.
_OF_INPUTS = ("kedro", "omegaconf", "yaml")


class RebaseError(Exception):
    """An error that the user can fix. The message says what is wrong, where, and what to do."""


class StageError(RebaseError):
    """A stage failed. ``rejected`` and ``mappings`` are tables that a hook saves, because the node cannot."""

    def __init__(
        self, message: str, rejected: "pd.DataFrame | None" = None, mappings: "pd.DataFrame | None" = None
    ) -> None:
        super().__init__(message)  # An error is pickled between processes as its message and its attributes.
        self.rejected = rejected
        self.mappings = mappings

    def table(self, output: str) -> "pd.DataFrame | None":
        """The table to save as this output of the node, such as ``examples_rejected``."""
        return {"rejected": self.rejected, "mappings": self.mappings}.get(output.rpartition("_")[2])


def did_you_mean(name: str, names: Iterable[str], title: str = "Allowed") -> str:
    """A sentence with the name that is most similar to a wrong ``name``, or with all ``names`` after ``title``."""
    names = sorted(names)
    close = get_close_matches(name, names) or get_close_matches(name.partition(".")[0], names)
    return f"Did you mean {close[0]}?" if close else f"{title}: {', '.join(names) or 'none'}."


def user_message(error: BaseException) -> str | None:
    """The message of an error that the user can fix; None for a fault of the program, which needs a traceback."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RebaseError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    modules = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    is_of_inputs = modules and modules[-1].partition(".")[0] in _OF_INPUTS
    return str(error) if is_of_inputs and not isinstance(error, ImportError) else None
