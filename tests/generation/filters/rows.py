"""Rows for the tests of the filters."""

from hypothesis import strategies as st

from rebase.datastore.cells import content_hash
from rebase.generation.filters.base import Candidate


def row(cells, row_id="r", dataset="d", license="MIT"):
    cells = cells if isinstance(cells, dict) else {"text": cells}
    return Candidate(row_id, dataset, license, cells, content_hash(cells))


texts = st.lists(st.sampled_from(["ab", "cd", "ef", "gh"]), min_size=1, max_size=12).map(" ".join)
