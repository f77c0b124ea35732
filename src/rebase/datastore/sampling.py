"""Taking a bounded, even sample of a stream whose length is not known."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

#: So many bytes of a stream are held at most, unless one row alone has more.
MAX_HELD_BYTES = 2**29


def sample_evenly(tables: Iterable[pa.Table], cap: int) -> tuple[list[pa.Table], np.ndarray, int]:
    """Take at most ``cap`` rows by even stride from consecutive tables, in one pass and bounded memory.

    Every ``stride``-th row is held; whenever more than twice the cap are held, or too many bytes, the stride doubles.
    What is left at the end is thinned evenly to the cap. So the stride is a power of two, thinned, where
    ``systematic_positions``, for a length that is known beforehand, has all gaps alike. Returns the rows, as pieces of the
    tables, whose types may differ; their positions in the stream ``[n]``; and the stream's length.
    """
    stride, total = 1, 0
    held: list[_Piece] = []
    for table in tables:
        piece = _Piece(table, np.arange(total, total + table.num_rows), table.nbytes)
        total += table.num_rows
        held += _thin([piece], stride)
        while _too_many(held, 2 * cap):
            stride *= 2
            held = _thin(held, stride)
    positions = np.concatenate([np.empty(0, dtype=np.int64), *(piece.positions for piece in held)])
    chosen = positions[systematic_positions(len(positions), cap)]
    pieces = [_pick(piece, np.isin(piece.positions, chosen)).table for piece in held]
    return [piece for piece in pieces if piece.num_rows], chosen, total


def systematic_positions(count: int, cap: int) -> np.ndarray:
    """At most ``cap`` of the positions ``0 .. count - 1``, evenly spread."""
    if count <= cap:
        return np.arange(count)
    return np.arange(cap) * count // cap


class _Piece(NamedTuple):
    """Rows of a stream: their positions in it, and their size in bytes."""

    table: pa.Table
    positions: np.ndarray
    size: int


def _too_many(held: list[_Piece], cap: int) -> bool:
    rows = sum(len(piece.positions) for piece in held)
    return rows > cap or (rows > 1 and sum(piece.size for piece in held) > MAX_HELD_BYTES)


def _thin(pieces: list[_Piece], stride: int) -> list[_Piece]:
    """Every ``stride``-th row of the stream."""
    thinned = (_pick(piece, piece.positions % stride == 0) for piece in pieces)
    return [piece for piece in thinned if len(piece.positions)]


def _pick(piece: _Piece, keep: np.ndarray) -> _Piece:
    """The rows that ``keep`` marks; copied, so that the rest can be freed."""
    if keep.all():
        return piece
    table = piece.table.take(np.flatnonzero(keep))
    return _Piece(table, piece.positions[keep], table.nbytes)
