"""Collapse exact and near duplicates among the kept rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from rebase.datastore.cells import worth_embedding
from rebase.generation.filters.base import Candidate, Filter, Rejection
from rebase.text import ngrams, tokens

if TYPE_CHECKING:
    from datasketch import MinHash, MinHashLSH

_SHINGLE = 3
#: Only the beginning of a longer row is compared: more than a teacher sees.
_MAX_SHINGLES = 10_000
_MAX_CHARACTERS = 100_000
_PERMUTATIONS = 128
#: Five standard deviations of a similarity of 0.8 that is estimated from 128 permutations.
_ESTIMATE_MARGIN = 0.18


@dataclass(frozen=True)
class _Sketch:
    """The shingles of a row and their MinHash (None if there are no shingles)."""

    shingles: np.ndarray
    minhash: "MinHash | None"

    @classmethod
    def of(cls, row: Candidate) -> "_Sketch":
        hashes = shingles(row.cells)
        if not len(hashes):
            return cls(hashes, None)
        minhash = _empty_minhash().copy()
        minhash.update_batch((hashes & np.uint64(2**32 - 1)).tolist())
        return cls(hashes, minhash)


@cache
def _empty_minhash() -> "MinHash":
    """Made once, because making the permutations takes longer than sketching a row."""
    from datasketch import MinHash

    return MinHash(num_perm=_PERMUTATIONS, seed=1, hashfunc=int)


@dataclass
class Duplicates:
    """The kept rows, each with the ids of its duplicates (``of``). The best ranked of several duplicates is kept.

    Two rows are near duplicates if the Jaccard similarity of their cells' 3-word shingles, whatever the names of the
    columns, is at least ``threshold``. MinHash proposes pairs, the true similarity decides.
    """

    threshold: float
    of: dict[str, list[str]] = field(default_factory=dict)
    _hashes: dict[str, str] = field(default_factory=dict)
    _kept: list[tuple[str, _Sketch]] = field(default_factory=list)
    _latest: tuple[Candidate, _Sketch] | None = None
    _lsh: "MinHashLSH | None" = None

    def find(self, row: Candidate) -> str | None:
        """The kept row that this row repeats, and record the duplicate; None if the row is new."""
        original = self._hashes.get(row.content_hash) or self._find_near(self._sketch(row))
        if original is not None:
            self.of[original].append(row.row_id)
        return original

    def keep(self, row: Candidate) -> None:
        """Remember a row that passed all filters."""
        sketch = self._sketch(row)
        self.of[row.row_id] = []
        self._hashes[row.content_hash] = row.row_id
        if sketch.minhash:
            self._index().insert(len(self._kept), sketch.minhash)
            self._kept.append((row.row_id, sketch))

    def _find_near(self, sketch: _Sketch) -> str | None:
        if sketch.minhash is None:
            return None
        # In the order of the ranking. Rows of one template propose each other by the thousand: the estimate is cheap.
        proposed = [self._kept[position] for position in sorted(self._index().query(sketch.minhash))]
        values = np.array([other.minhash.hashvalues for _, other in proposed if other.minhash])
        estimates = np.mean(values == sketch.minhash.hashvalues, axis=-1) if proposed else []
        for (row_id, other), estimate in zip(proposed, estimates, strict=True):
            is_likely = estimate >= self.threshold - _ESTIMATE_MARGIN
            if is_likely and jaccard(sketch.shingles, other.shingles) >= self.threshold:
                return row_id
        return None

    def _sketch(self, row: Candidate) -> _Sketch:
        """The row's sketch, computed once for ``find`` and ``keep``."""
        if self._latest is None or self._latest[0] is not row:
            self._latest = row, _Sketch.of(row)
        return self._latest[1]

    def _index(self) -> "MinHashLSH":
        if self._lsh is None:
            from datasketch import MinHashLSH

            # Far below the threshold, so that pairs at the threshold are rarely missed: a proposal costs one
            # comparison, a missed pair is a duplicate.
            self._lsh = MinHashLSH(threshold=0.6 * self.threshold, num_perm=_PERMUTATIONS, weights=(0.2, 0.8))
        return self._lsh


def duplicate_filter(duplicates: Duplicates) -> Filter:
    """Reject rows that repeat a kept row."""

    def row_filter(row: Candidate) -> Rejection | None:
        original = duplicates.find(row)
        return Rejection("duplicate", original) if original else None

    return row_filter


def shingles(cells: Mapping[str, str]) -> np.ndarray:
    """The 3-word shingles of a row's texts as sorted 64-bit hashes; a shorter text is one shingle."""
    texts = (tokens(text[:_MAX_CHARACTERS]) for text in cells.values() if worth_embedding(text))
    grams = (gram for words in texts for gram in (ngrams(words, _SHINGLE) if len(words) > _SHINGLE else [words]))
    hashes = (blake2b(" ".join(gram).encode(), digest_size=8).digest() for gram in islice(grams, _MAX_SHINGLES))
    return np.unique(np.frombuffer(b"".join(hashes), dtype=np.uint64))


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """|A ∩ B| / |A ∪ B| of two sets as sorted arrays; 0 for two empty sets."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / max(1, len(first) + len(second) - shared)
