"""Limit the rows of one dataset."""

from collections import Counter

from rebase.generation.filters.base import Candidate, Filter, Rejection


def share_filter(kept: Counter[str], limit: int) -> Filter:
    """Reject rows of datasets that already have ``limit`` kept rows; ``kept`` counts them by dataset."""

    def row_filter(row: Candidate) -> Rejection | None:
        return Rejection("dataset_share", row.dataset) if kept[row.dataset] >= limit else None

    return row_filter
