"""Systematic samples: at most a given number of rows, spread evenly over a stream or a list."""

from collections.abc import Iterable
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")

#: The most characters of a stream that are held, unless a single row has more.
MAX_HELD = 2**29


def systematic_sample(items: Iterable[Item], cap: int) -> tuple[list[tuple[int, Item]], int]:
    """Take a systematic sample of at most ``cap`` items of a stream, in one pass and bounded memory.

    Every k-th item is held. When more than twice the cap are held, or too many characters, k doubles. At the end the
    held items are thinned to the cap, so gaps are not all equal as those of ``systematic_positions`` are.

    Returns:
        The items with their positions in the stream; the number of items in the stream.

    """
    step, total, size = 1, 0, 0
    held: list[tuple[int, Item, int]] = []
    for total, item in enumerate(items, start=1):
        if (total - 1) % step:
            continue
        held.append((total - 1, item, len(str(item))))
        size += held[-1][2]
        while len(held) > 2 * cap or (len(held) > 1 and size > MAX_HELD):
            step *= 2
            held = [entry for entry in held if entry[0] % step == 0]
            size = sum(entry[2] for entry in held)
    return [held[number][:2] for number in systematic_positions(len(held), cap)], total


def systematic_positions(count: int, cap: int) -> np.ndarray:
    """Return a systematic sample of at most ``cap`` of the positions ``0 .. count - 1``."""
    return np.arange(count) if count <= cap else np.arange(cap) * count // cap
