from rebase.generation.filters.exclusion import reject_excluded
from tests.generation.filters.rows import row


def test_exclusion(reading_task):
    assert reject_excluded(row("x", dataset="Banned-Books"), reading_task).reason == "excluded_dataset"
    assert reject_excluded(row("x", dataset="owner/TINY_READING-v2"), reading_task).reason == "excluded_dataset"
    assert reject_excluded(row("x", dataset="owner/tiny-reading"), reading_task) is None
    assert reject_excluded(row("x", dataset="not-banned-books"), reading_task) is None
