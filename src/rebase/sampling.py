"""Taking a bounded, even sample of a stream whose length is not known."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa


def sample_evenly(tables: Iterable[pa.Table], cap: int) -> tuple[list[pa.Table], np.ndarray, int]:
    """Take at most ``cap`` rows by even stride from consecutive tables, in one pass and bounded memory.

    Every ``stride``-th row is held; whenever more than twice the cap are held, the stride doubles. What is left
    at the end is thinned evenly to the cap. Returns the rows, as pieces of the tables, whose types may differ;
    their positions in the stream ``[n]``; and the stream's length.
    """
    stride, total = 1, 0
    held: list[tuple[pa.Table, np.ndarray]] = []
    for table in tables:
        positions = np.arange(total, total + table.num_rows)
        total += table.num_rows
        held.append(_pick(table, positions, positions % stride == 0))
        while sum(len(kept) for _, kept in held) > 2 * cap:
            stride *= 2
            held = [_pick(piece, kept, kept % stride == 0) for piece, kept in held]
    positions = np.concatenate([np.empty(0, dtype=np.int64), *(kept for _, kept in held)])
    chosen = positions[even_positions(len(positions), cap)]
    pieces = [_pick(piece, kept, np.isin(kept, chosen))[0] for piece, kept in held]
    return [piece for piece in pieces if piece.num_rows], chosen, total


def even_positions(count: int, cap: int) -> np.ndarray:
    """At most ``cap`` of the positions ``0 .. count - 1``, evenly spread."""
    if count <= cap:
        return np.arange(count)
    return np.arange(cap) * count // cap


def _pick(table: pa.Table, positions: np.ndarray, keep: np.ndarray) -> tuple[pa.Table, np.ndarray]:
    """The rows that ``keep`` marks, and their positions; copied, so that the rest can be freed."""
    return (table, positions) if keep.all() else (table.take(np.flatnonzero(keep)), positions[keep])
