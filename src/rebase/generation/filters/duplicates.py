"""Collapse exact and near duplicates among the kept rows."""

import re
from collections.abc import Mapping
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rebase.datastore.cells import worth_embedding
from rebase.generation.filters.base import Candidate, Rejection
from rebase.text import NUMBER, ngrams, tokens

if TYPE_CHECKING:
    from datasketch import MinHash

_SHINGLE = 3
#: Only the beginning of a longer row is compared: more than a teacher sees.
_MAX_SHINGLES = 10_000
_MAX_CHARACTERS = 100_000
_PERMUTATIONS = 128
#: Five standard deviations of a similarity of 0.8 that is estimated from 128 permutations.
_ESTIMATE_MARGIN = 0.18
# Dates, times, versions and the like: copies of one text may have different ones.
_STAMP = re.compile(r"\d([-/.:])\d+\1\d|\d:\d\d")


class _Sketch(NamedTuple):
    hashes: np.ndarray
    minhash: "MinHash"
    numbers: frozenset[int]
    cells: tuple[np.ndarray, ...]


class Duplicates:
    """The kept rows, each with the ids of its duplicates (``of``). The best ranked of several duplicates is kept.

    Two rows are near duplicates if the Jaccard similarity of their cells' 3-word shingles, whatever the names of the
    columns, is at least ``threshold``, unless each has cells of several numbers that the other lacks: the words may be
    the same in all rows of a dataset. With ``by_cell`` rows have the same columns, and each cell must be as similar:
    two questions about one passage are no duplicates. MinHash proposes pairs, the true similarity decides.
    """

    def __init__(self, threshold: float, *, by_cell: bool = False) -> None:
        from datasketch import MinHash, MinHashLSH

        self.of: dict[str, list[str]] = {}
        self._threshold = threshold
        self._by_cell = by_cell
        self._by_hash: dict[str, str] = {}
        self._kept: list[tuple[str, _Sketch]] = []
        self._latest: tuple[Candidate, _Sketch] | None = None
        # Copied for each row, because making the permutations takes longer than sketching a row.
        self._empty = MinHash(num_perm=_PERMUTATIONS, seed=1, hashfunc=int)
        # Far below the threshold, so that pairs at the threshold are rarely missed: a proposal costs one comparison, a
        # missed pair is a duplicate.
        self._lsh = MinHashLSH(threshold=0.6 * threshold, num_perm=_PERMUTATIONS, weights=(0.2, 0.8))

    def reject(self, row: Candidate) -> Rejection | None:
        """Reject a row that repeats a kept row, and record it as its duplicate; None if the row is new."""
        original = self._by_hash.get(row.content_hash) or self._find_near(row)
        if original is None:
            return None
        self.of[original].append(row.row_id)
        return Rejection("duplicate", original)

    def keep(self, row: Candidate) -> None:
        """Remember a row that passed all filters."""
        sketch = self._sketch(row)
        self.of[row.row_id] = []
        self._by_hash[row.content_hash] = row.row_id
        if len(sketch.hashes):
            self._lsh.insert(len(self._kept), sketch.minhash)
            self._kept.append((row.row_id, sketch))

    def _find_near(self, row: Candidate) -> str | None:
        sketch = self._sketch(row)
        # In the order of the ranking. Rows of one template propose each other by the thousand: the estimate is cheap.
        positions = sorted(self._lsh.query(sketch.minhash)) if len(sketch.hashes) else []
        if not positions:
            return None
        values = np.array([self._kept[position][1].minhash.hashvalues for position in positions])
        estimates = (values == sketch.minhash.hashvalues).mean(axis=-1)
        for position in np.array(positions)[estimates >= self._threshold - _ESTIMATE_MARGIN]:
            row_id, other = self._kept[position]
            is_comparable = sketch.numbers <= other.numbers or other.numbers <= sketch.numbers
            pairs = [(sketch.hashes, other.hashes), *zip(sketch.cells, other.cells, strict=True)]
            if is_comparable and all(jaccard(*pair) >= self._threshold for pair in pairs):
                return row_id
        return None

    def _sketch(self, row: Candidate) -> _Sketch:
        """What the row is compared by, computed once for ``reject`` and ``keep``."""
        if self._latest is None or self._latest[0] is not row:
            hashes, minhash = shingles(row.cells), self._empty.copy()
            minhash.update_batch((hashes & np.uint64(2**32 - 1)).tolist())
            cells = tuple(shingles({"": text}) for text in row.cells.values()) if self._by_cell else ()
            self._latest = row, _Sketch(hashes, minhash, frozenset(map(hash, number_cells(row.cells))), cells)
        return self._latest[1]


def shingles(cells: Mapping[str, str]) -> np.ndarray:
    """The 3-word shingles of a row's texts as sorted 64-bit hashes; a shorter text is one shingle."""
    texts = (tokens(text[:_MAX_CHARACTERS]) for text in cells.values() if worth_embedding(text))
    grams = (gram for words in texts for gram in (ngrams(words, _SHINGLE) if len(words) > _SHINGLE else [words]))
    hashes = (blake2b(" ".join(gram).encode(), digest_size=8).digest() for gram in islice(grams, _MAX_SHINGLES))
    return np.unique(np.frombuffer(b"".join(hashes), dtype=np.uint64))


def number_cells(cells: Mapping[str, str]) -> set[str]:
    """The cells of several numbers and no letter, such as ``3 + 5`` or ``2, 4, 8``, without their spaces.

    Not dates and times, nor a number alone, which may be an id.
    """
    texts = (text[:_MAX_CHARACTERS] for text in cells.values() if not any(map(str.isalpha, text)))
    several = (text for text in texts if len(list(islice(NUMBER.finditer(text), 2))) > 1 and not _STAMP.search(text))
    return {"".join(text.split()) for text in several}


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """|A ∩ B| / |A ∪ B| of two sets as sorted arrays; 1 for two empty sets."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    union = len(first) + len(second) - shared
    return shared / union if union else 1.0
