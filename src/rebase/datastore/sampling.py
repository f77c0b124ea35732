"""Systematic samples: at most a given number of rows, spread evenly over a stream or a list."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

#: The most bytes of a stream that are held, unless a single row has more.
MAX_HELD_BYTES = 2**29


def systematic_sample(tables: Iterable[pa.Table], cap: int) -> tuple[list[pa.Table], np.ndarray, int]:
    """Take a systematic sample of at most ``cap`` rows of consecutive tables, in one pass and bounded memory.

    Every k-th row is held. When more than twice the cap are held, or too many bytes, k doubles. At the end the held
    rows are thinned to the cap, so gaps are not all equal as those of ``systematic_positions`` are.

    Returns:
        The rows, as parts of the tables, whose types may differ; their positions in the stream ``[n]``; the number of
        rows in the stream.

    """
    step, total = 1, 0
    held: list[_Part] = []
    for table in tables:
        part = _Part(table, np.arange(total, total + table.num_rows), table.nbytes)
        total += table.num_rows
        held += _thin([part], step)
        while _too_many(held, 2 * cap):
            step *= 2
            held = _thin(held, step)
    positions = np.concatenate([np.empty(0, dtype=np.int64), *(part.positions for part in held)])
    chosen = positions[systematic_positions(len(positions), cap)]
    parts = [_take(part, np.isin(part.positions, chosen)).table for part in held]
    return [part for part in parts if part.num_rows], chosen, total


def systematic_positions(count: int, cap: int) -> np.ndarray:
    """Return a systematic sample of at most ``cap`` of the positions ``0 .. count - 1``."""
    return np.arange(count) if count <= cap else np.arange(cap) * count // cap


class _Part(NamedTuple):
    """Rows of a stream: their positions in it, and their size in bytes."""

    table: pa.Table
    positions: np.ndarray
    size: int


def _too_many(held: list[_Part], cap: int) -> bool:
    rows = sum(len(part.positions) for part in held)
    return rows > cap or (rows > 1 and sum(part.size for part in held) > MAX_HELD_BYTES)


def _thin(parts: list[_Part], step: int) -> list[_Part]:
    """Every ``step``-th row of the stream."""
    thinned = (_take(part, part.positions % step == 0) for part in parts)
    return [part for part in thinned if len(part.positions)]


def _take(part: _Part, chosen: np.ndarray) -> _Part:
    """The chosen rows; copied, so that the others can be freed."""
    if chosen.all():
        return part
    table = part.table.take(np.flatnonzero(chosen))
    return _Part(table, part.positions[chosen], table.nbytes)
