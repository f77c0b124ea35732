"""A dataset's embedded texts, as the stages share them: one line a text, with its vector and its cells."""

from typing import Any

import numpy as np
import pyarrow as pa

from rebase.datastore.shards import metadata_of

#: The row number of the dataset's description, which is embedded like a cell.
DESCRIPTION = -1


def vectors_of(table: pa.Table) -> np.ndarray:
    """The vectors of a shard as float16 ``[texts, d]``; not copied if the table has one chunk."""
    column = table["vector"]
    column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    values: np.ndarray = column.flatten().to_numpy(zero_copy_only=True)
    return values.reshape(len(column), column.type.list_size)


def cells_at(table: pa.Table, position: int) -> list[tuple[int, str]]:
    """The cells that hold the text at a position, as (row, column); a description has the row ``DESCRIPTION``."""
    columns: Any = metadata_of(table)["columns"]
    rows, numbers = (table[name][position].as_py() for name in ("rows", "columns"))
    return [(row, columns[number]) for row, number in zip(rows, numbers, strict=True)]
