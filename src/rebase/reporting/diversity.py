"""The diversity of a training set's texts."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from rapidfuzz.distance import Indel
from rapidfuzz.process import cdist

from rebase.text import count_words, ngrams, tokens

#: A text with at least this ROUGE-L to another one repeats it.
REPEATED = 0.7
#: Below the smallest difference of two ROUGE-L values, above the error of a float.
_ROUNDING = 1e-9
#: Texts compared with all earlier texts at once, at 8 bytes for each pair.
_BLOCK = 256


def measure_texts(texts: Sequence[str], vectors: np.ndarray) -> dict[str, float | None]:
    """Measure the diversity of texts with unit vectors ``[texts, d]``; a measure is None if it is undefined.

    Returns:
        ``distinct_share`` of texts (``distinct_texts``; for MCoNaLa arXiv 2407.05463 reports 25.9 % for plain synthesis
        and 75.4 % for ReBase); ``mean_cosine`` of all pairs; ``distinct_1`` and ``distinct_2``, the shares of distinct
        words and word pairs (Li et al., 2016). All but the cosine fall with the size of a set: compare equal sizes.

    """
    words = [tokens(text) for text in texts]
    return {
        "distinct_share": _share(int(distinct_texts(words).sum()), len(words)),
        "mean_cosine": mean_cosine(vectors),
        **{f"distinct_{n}": distinct_ngrams(words, n) for n in (1, 2)},
    }


def distinct_texts(texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Find the distinct texts, given as words: a mask ``[texts]``.

    In the given order, a text is distinct if its ROUGE-L to every earlier distinct text is below 0.7, the criterion of
    self-instruct (arXiv 2212.10560). ROUGE-L is the F1 of the longest common subsequence, ``2 LCS / (m + n)`` for texts
    of m and n words (Lin, 2004). The first of the texts without a word is distinct.
    """
    # Numbers compare faster than words. Equal texts: only the first can be distinct.
    numbers: dict[str, int] = {}
    first: dict[tuple[int, ...], int] = {}
    for index, words in enumerate(texts):
        first.setdefault(tuple(numbers.setdefault(word, len(numbers)) for word in words), index)
    spelled = list(first)
    distinct: list[tuple[int, ...]] = []
    for start in range(0, len(spelled), _BLOCK):
        earlier = [*distinct, *spelled[start : start + _BLOCK]]
        chosen = np.arange(len(earlier)) < len(distinct)
        # The normalized Indel similarity is ROUGE-L.
        near = cdist(
            earlier[len(distinct) :],
            earlier,
            scorer=Indel.normalized_similarity,
            score_cutoff=REPEATED - _ROUNDING,  # lower values become 0
            dtype=np.float64,
            workers=-1,
        )
        for index, similar in enumerate(near > 0, len(distinct)):
            chosen[index] = not similar[chosen].any()
        distinct = [text for text, is_chosen in zip(earlier, chosen, strict=True) if is_chosen]
    mask = np.zeros(len(texts), dtype=bool)
    mask[[first[text] for text in distinct]] = True
    return mask


def mean_cosine(vectors: np.ndarray) -> float | None:
    """The mean cosine of all pairs of unit vectors ``[n, d]``, in O(n d); None for fewer than two.

    The squared sum of all vectors is the sum of the cosines of all ordered pairs, including each vector with itself.
    """
    n = len(vectors)
    if n < 2:
        return None
    total = vectors.sum(axis=0, dtype=np.float64)
    squares = np.square(vectors, dtype=np.float64).sum()
    return float(total @ total - squares) / (n * (n - 1))


def distinct_ngrams(texts: Sequence[Sequence[str]], n: int) -> float | None:
    """The share of distinct n-grams among all n-grams of the texts; None without any."""
    grams = list(chain.from_iterable(ngrams(words, n) for words in texts))
    return _share(len(set(grams)), len(grams))


def measure_lengths(texts: Sequence[str]) -> dict[str, Any] | None:
    """Mean, 10th, 50th and 90th percentile of the texts' lengths in words; None without texts."""
    if not texts:
        return None
    words = [count_words(text) for text in texts]
    quantiles = np.percentile(words, (10, 50, 90)).tolist()
    return {"mean": float(np.mean(words)), **dict(zip(("p10", "p50", "p90"), quantiles, strict=True))}


def _share(part: int, total: int) -> float | None:
    return part / total if total else None
