"""How much the texts of a training set differ from one another."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from rapidfuzz.distance import Indel
from rapidfuzz.process import cdist

from rebase.text import count_words, ngrams, tokens

#: The ROUGE-L from which a text repeats another.
REPEATED = 0.7
#: Less than what two values of ROUGE-L differ by, more than what a float is wrong by.
_ROUNDING = 1e-9
#: Texts that are compared with all before them at once: bounds the memory, 8 bytes a pair.
_BLOCK = 256


def measure_texts(texts: Sequence[str], vectors: np.ndarray) -> dict[str, float | None]:
    """The diversity of texts with their unit vectors ``[texts, d]``; a measure is None where nothing can be measured.

    ``distinct_share``, of texts by ``distinct_texts``: for MCoNaLa the paper (arXiv 2407.05463) has 25.9 % for plain
    synthesis and 75.4 % for ReBase. ``mean_cosine`` of all pairs. ``distinct_1`` and ``distinct_2``: the share of
    different ones among all words and pairs of neighboring words (Li et al., 2016). All but the cosine fall as a set
    grows: compare sets of one size. Words are ``rebase.text.tokens``.
    """
    words = [tokens(text) for text in texts]
    return {
        "distinct_share": _share(int(distinct_texts(words).sum()), len(words)),
        "mean_cosine": mean_cosine(vectors),
        **{f"distinct_{n}": distinct_ngrams(words, n) for n in (1, 2)},
    }


def distinct_texts(texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Which texts, given as words, repeat no distinct one before them: bool ``[texts]``.

    In the order given, a text is distinct when its ROUGE-L to every distinct text before it is below 0.7, the
    criterion of self-instruct (arXiv 2212.10560). ROUGE-L is the F1 of the longest common subsequence,
    ``2 LCS / (m + n)`` for texts of m and n words (Lin, 2004). Of texts without a word the first one is distinct.
    """
    numbers: dict[str, int] = {}
    # A text that is equal to an earlier one is never distinct.
    first: dict[tuple[int, ...], int] = {}
    for place, words in enumerate(texts):
        first.setdefault(tuple(numbers.setdefault(word, len(numbers)) for word in words), place)
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
            score_cutoff=REPEATED - _ROUNDING,  # what is less becomes 0
            dtype=np.float64,
            workers=-1,
        )
        for place, similar in enumerate(near > 0, len(distinct)):
            chosen[place] = not similar[chosen].any()
        distinct = [text for text, is_chosen in zip(earlier, chosen, strict=True) if is_chosen]
    mask = np.zeros(len(texts), dtype=bool)
    mask[[first[text] for text in distinct]] = True
    return mask


def mean_cosine(vectors: np.ndarray) -> float | None:
    """The mean cosine of all pairs of unit vectors ``[n, d]``, in O(n d); None for fewer than two.

    The square of the sum of all vectors is the sum of the cosines of all ordered pairs, those with themselves too.
    """
    n = len(vectors)
    if n < 2:
        return None
    total = vectors.sum(axis=0, dtype=np.float64)
    own = np.square(vectors, dtype=np.float64).sum()
    return float(total @ total - own) / (n * (n - 1))


def distinct_ngrams(texts: Sequence[Sequence[str]], n: int) -> float | None:
    """The share of different ones among all runs of ``n`` words in the texts; None where there are none."""
    found = list(chain.from_iterable(ngrams(words, n) for words in texts))
    return _share(len(set(found)), len(found))


def measure_lengths(texts: Sequence[str]) -> dict[str, Any] | None:
    """The texts' lengths in words (``count_words``): mean, and 10th, 50th and 90th percentile; None without texts."""
    if not texts:
        return None
    words = [count_words(text) for text in texts]
    quantiles = np.percentile(words, (10, 50, 90)).tolist()
    return {"mean": float(np.mean(words)), **dict(zip(("p10", "p50", "p90"), quantiles, strict=True))}


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
