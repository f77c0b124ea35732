"""The error type for users."""


class RebaseError(Exception):
    """An error that the user can fix. The message says what is wrong, where, and what to do."""
