"""Reject rows without code, for tasks whose answers are code."""

from rebase.generation.filters.base import Candidate, Rejection
from rebase.text import inside_fence, is_python


def reject_without_code(row: Candidate) -> Rejection | None:
    """Why the row is no source for a task that answers in Python: no cell is code, or has a code fence; else None."""
    if any(is_python(inside_fence(cell)) for cell in row.cells.values()):
        return None
    return Rejection("no_code")
