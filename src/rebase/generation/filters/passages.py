"""Reject rows without a reading passage, for tasks that take one from the row."""

from rebase.generation.filters.base import Candidate, Rejection
from rebase.parameters import RetrieveParameters
from rebase.text import count_words, cut_at_sentence


def find_passage(row: Candidate, parameters: RetrieveParameters) -> str | None:
    """The reading passage of a row: its longest cell, cut at a sentence; None if it has too few words."""
    passage = cut_at_sentence(row.longest_cell, parameters.max_passage_words)
    return passage if count_words(passage) >= parameters.min_passage_words else None


def reject_without_passage(row: Candidate, parameters: RetrieveParameters) -> Rejection | None:
    """Reject a row whose longest cell is too short for a passage."""
    return Rejection("no_passage") if find_passage(row, parameters) is None else None
