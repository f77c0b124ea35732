"""A dataset's embedded texts, as the stages share them: one line a text, with its vector and its cells."""

from typing import Any

import numpy as np
import pyarrow as pa

from rebase.datastore.shards import metadata_of

#: The row number under which a dataset's description stands among its cells.
DESCRIPTION = -1


def vectors_of(table: pa.Table) -> np.ndarray:
    """The vectors of a shard as float16 ``[texts, d]``; nothing is copied where the table has one chunk."""
    column = table["vector"]
    column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    values: np.ndarray = column.flatten().to_numpy(zero_copy_only=True)
    return values.reshape(len(column), column.type.list_size)


def cells_at(table: pa.Table, place: int) -> list[tuple[int, str]]:
    """Where a dataset's text stands, as (row, column); the row of the description is ``DESCRIPTION``."""
    columns: Any = metadata_of(table)["columns"]
    rows, positions = (table[name][place].as_py() for name in ("rows", "columns"))
    return [(row, columns[position]) for row, position in zip(rows, positions, strict=True)]
