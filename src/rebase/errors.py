"""The one error that a user is meant to read."""


class RebaseError(Exception):
    """Something that the user can mend: says what is wrong, where, and what to do."""
