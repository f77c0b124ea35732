"""Reject rows without code, for tasks whose answers are code."""

from rebase.generation.filters.base import Candidate, Rejection
from rebase.text import inside_fences, is_python, list_items


def reject_without_code(row: Candidate) -> Rejection | None:
    """Reject a row for a task that answers in Python unless a cell, an item of a list or a code fence in it is code."""
    items = (item for cell in row.cells.values() for item in {cell, *list_items(cell)})
    if any(is_python(code) for item in items for code in inside_fences(item)):
        return None
    return Rejection("no_code")
