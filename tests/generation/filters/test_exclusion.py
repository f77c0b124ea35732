from rebase.generation.filters import (
    exclusion_filter,
)
from tests.generation.filters.rows import row


def test_exclusion(reading_task):
    row_filter = exclusion_filter(reading_task)
    assert row_filter(row("x", dataset="Banned-Books")).reason == "excluded_dataset"
    assert row_filter(row("x", dataset="owner/TINY_READING-v2")).reason == "excluded_dataset"
    assert row_filter(row("x", dataset="owner/tiny-reading")) is None
    assert row_filter(row("x", dataset="not-banned-books")) is None
