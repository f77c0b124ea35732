"""Taking a bounded, even sample of a stream whose length is not known."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa


def sample_evenly(tables: Iterable[pa.Table], cap: int) -> tuple[pa.Table | None, np.ndarray, int]:
    """Take at most ``cap`` rows by even stride from consecutive tables, in one pass and bounded memory.

    Every ``stride``-th row is held; whenever more than twice the cap are held, the stride doubles. What is left
    at the end is thinned evenly to the cap. Returns the rows, their positions in the stream ``[n]``, and the
    stream's length; no tables give ``None``.
    """
    stride, total = 1, 0
    held: list[tuple[pa.Table, np.ndarray]] = []
    for table in tables:
        positions = np.arange(total, total + table.num_rows)
        total += table.num_rows
        held.append(_every(table, positions, stride))
        while sum(len(kept) for _, kept in held) > 2 * cap:
            stride *= 2
            held = [_every(*piece, stride) for piece in held]
    if not held:
        return None, np.empty(0, dtype=np.int64), total
    rows = pa.concat_tables([piece for piece, _ in held], promote_options="permissive")
    positions = np.concatenate([kept for _, kept in held])
    chosen = even_positions(len(positions), cap)
    return rows.take(chosen), positions[chosen], total


def even_positions(count: int, cap: int) -> np.ndarray:
    """At most ``cap`` of the positions ``0 .. count - 1``, evenly spread."""
    if count <= cap:
        return np.arange(count)
    return np.arange(cap) * count // cap


def _every(table: pa.Table, positions: np.ndarray, stride: int) -> tuple[pa.Table, np.ndarray]:
    """The rows whose position in the stream is a multiple of the stride, copied so that the rest can be freed."""
    keep = np.flatnonzero(positions % stride == 0)
    return (table, positions) if len(keep) == len(positions) else (table.take(keep), positions[keep])
