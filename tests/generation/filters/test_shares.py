from collections import Counter

from rebase.generation.filters import (
    share_filter,
)
from tests.generation.filters.rows import row


def test_share_of_one_dataset_is_capped():
    kept = Counter({"d": 2})
    assert share_filter(kept, 3)(row("x")) is None
    assert share_filter(kept, 2)(row("x")).reason == "dataset_share"
    assert share_filter(kept, 2)(row("x", dataset="e")) is None
