"""The error types for users."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


class RebaseError(Exception):
    """An error that the user can fix. The message says what is wrong, where, and what to do."""


class StageError(RebaseError):
    """A stage failed. ``rejected`` is the table of what it has rejected: a hook saves it, because the node cannot."""

    def __init__(self, message: str, rejected: "pd.DataFrame | None" = None) -> None:
        super().__init__(message)  # An error is pickled between processes as its message and its attributes.
        self.rejected = rejected
