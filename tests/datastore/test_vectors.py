"""The shards of vectors, as all stages read them."""

import numpy as np
import pyarrow as pa
import pytest

from rebase.datastore.vectors import DESCRIPTION, cells_at, vectors_of
from tests.datastore.stores import embedded

VECTORS = np.arange(12, dtype=np.float16).reshape(4, 3)
TABLE = embedded(VECTORS, [[(0, 0), (1, 2)], [], [(0, 1)]], 1)


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("cut", [1, 2, 4])
def test_vectors_are_the_same_however_the_table_is_cut(start, cut):
    table = pa.concat_tables([TABLE.slice(0, cut), TABLE.slice(cut)]).slice(start)
    np.testing.assert_array_equal(vectors_of(table), VECTORS[start:])


def test_the_vectors_of_one_chunk_are_not_copied():
    stored = TABLE["vector"].chunk(0).values.to_numpy()
    assert np.shares_memory(vectors_of(TABLE), stored)


def test_a_text_has_all_its_cells_and_the_description_has_none():
    assert cells_at(TABLE, 0) == [(0, "c0"), (2, "c1")]
    assert cells_at(TABLE, 1) == [(DESCRIPTION, ""), (0, "c2")]
    assert cells_at(TABLE, 3) == []
