"""Scores of single answers, and intervals over many.

Scores of single answers are between 0 and 1. Means and intervals over many are percentages, as in published tables.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
from rapidfuzz.distance import LCSseq

from rebase.records import Metric
from rebase.tasks.chrf import chrf, corpus_chrf, count_ngrams
from rebase.text import normalize

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ROUGE_WORD = re.compile(r"[a-z0-9]+")
#: The number of draws of a permutation test, and of those in memory at once.
_DRAWS, _DRAWS_AT_ONCE = 9999, 500
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score(metric: Metric, prediction: str, references: Sequence[str]) -> float:
    """Score an extracted answer against the references, 0 to 1: the best over them."""
    compare: Callable[[str, str], float] = {
        "exact_match": exact_match,
        "f1": f1,
        "accuracy": same_label,
        "numeric_match": same_number,
        "chrf": chrf,
        "rouge_l": rouge_l,
    }[metric]
    return max((compare(prediction, reference) for reference in references), default=0.0)


def normalize_answer(text: str) -> str:
    """Apply SQuAD's normalization: lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def contains_answer(text: str, answer: str) -> bool:
    """Whether the text has all words of an answer, in a row; an answer without words is in no text."""
    words_of_text, words = (f" {normalize(normalize_answer(part))} " for part in (text, answer))
    return bool(words.strip()) and words in words_of_text


def exact_match(prediction: str, answer: str) -> float:
    """Return 1 if both are the same after SQuAD's normalization (Rajpurkar et al., 2016), else 0."""
    return float(normalize_answer(prediction) == normalize_answer(answer))


def f1(prediction: str, answer: str) -> float:
    """Return the harmonic mean of word precision and recall after SQuAD's normalization, as in its v1.1 script.

    Two answers that are empty after normalization share no word: 0.
    """
    return word_f1(normalize_answer(prediction).split(), normalize_answer(answer).split())


def word_f1(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall of the words; 0 if they share none."""
    shared = (Counter(predicted) & Counter(gold)).total()
    return 2 * shared / (len(predicted) + len(gold)) if shared else 0.0


def same_label(prediction: str, answer: str) -> float:
    """Return 1 for the same label, without regard to case and surrounding space, else 0."""
    return float(prediction.strip().casefold() == answer.strip().casefold())


def same_number(prediction: str, answer: str) -> float:
    """Return 1 for the same number, else 0: ``1800``, ``1,800`` and ``$1800.0`` are the same."""
    left, right = _decimal(prediction), _decimal(answer)
    return float(left is not None and left == right)


def rouge_l(prediction: str, answer: str) -> float:
    """Return ROUGE-L, 0 to 1: the F1 of the longest common subsequence of words (Lin, 2004).

    As in Google's rouge-score without stemming: words are runs of ASCII letters and digits, in lower case.
    """
    predicted, gold = (_ROUGE_WORD.findall(text.lower()) for text in (prediction, answer))
    shared = LCSseq.similarity(predicted, gold)
    return 2 * shared / (len(predicted) + len(gold)) if shared else 0.0


def bootstrap_interval(scores: Sequence[float], samples: int, confidence: float, seed: int) -> dict[str, float]:
    """Return ``value``, ``low`` and ``high``: the mean of item scores and its bootstrap interval, in percent.

    Items are drawn with replacement ``samples`` times (Efron's percentile method). For a paired interval, give the
    differences of two systems on the same items.
    """
    return bootstrap_means([scores], samples, confidence, seed)


def bootstrap_means(groups: Sequence[Sequence[float]], samples: int, confidence: float, seed: int) -> dict[str, float]:
    """Return the unweighted mean of the groups' mean scores, in the form of ``bootstrap_interval``.

    Items are drawn within each group: the interval is for these groups, not for others like them.
    """
    scores = [np.asarray(group, dtype=np.float64) * 100 for group in groups]
    return _bootstrap(scores, np.mean, samples, confidence, seed)


def bootstrap_chrf(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    samples: int,
    confidence: float,
    seed: int,
    baseline: Sequence[str] | None = None,
) -> dict[str, float]:
    """Return the corpus's chrF++ in the form of ``bootstrap_interval``.

    This is the published score: n-grams are counted over the whole corpus, so that long answers weigh more than in the
    mean of ``chrf``. With the predictions of a ``baseline`` for the same items: the paired difference to its score, and
    its ``p`` (``permutation_p``).
    """
    systems = [predictions] if baseline is None else [predictions, baseline]
    counts = np.stack([count_ngrams(texts, references) for texts in systems], axis=1)

    def corpus_score(drawn: np.ndarray) -> float:
        score, *baseline_scores = (corpus_chrf(drawn[:, system]) for system in range(len(systems)))
        return score - sum(baseline_scores)

    interval = _bootstrap([counts], corpus_score, samples, confidence, seed)
    if baseline is None:
        return interval
    both = counts.sum(axis=(0, 1))

    def corpus_gains(differences: np.ndarray) -> np.ndarray:
        # Halves of sum and difference are the counts of each system.
        pairs = np.stack([both + differences, both - differences], axis=1) / 2
        return np.array([corpus_score(pair[None]) for pair in pairs])

    return {**interval, "p": permutation_p(counts[:, 0] - counts[:, 1], seed, corpus_gains)}


def permutation_p(
    differences: np.ndarray, seed: int, gains_of: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> float:
    """Return the two-sided p-value of a gain, by a paired permutation test (Fisher) with 9,999 draws.

    ``differences`` of the two systems are ``[items]`` or ``[items, statistics]``; swapping the systems on an item turns
    their signs. ``gains_of`` turns sums of differences ``[draws, ...]`` into gains ``[draws]``; by default they are the
    sums. Not
    ``scipy.stats.permutation_test``, which takes thirty times as long for 1,000 items.
    """
    draw = np.random.default_rng(seed)
    unequal = differences[differences.any(axis=tuple(range(1, differences.ndim)))]
    observed = abs(gains_of(unequal.sum(axis=0, keepdims=True))) - 1e-9
    extreme_count = 1  # the observed assignment
    for start in range(0, _DRAWS, _DRAWS_AT_ONCE):
        signs = 2 * draw.integers(2, size=(min(_DRAWS_AT_ONCE, _DRAWS - start), len(unequal)), dtype=np.int8) - 1
        extreme_count += int((abs(gains_of(signs @ unequal)) >= observed).sum())
    return round(extreme_count / (_DRAWS + 1), 4)


def _bootstrap(
    groups: Sequence[np.ndarray], statistic: Callable[[np.ndarray], Any], samples: int, confidence: float, seed: int
) -> dict[str, float]:
    """Return the mean over the groups of a statistic of their items, and its interval over ``samples`` draws.

    Not ``scipy.stats.bootstrap``: it rejects a single item, and holds the positions of all draws in memory.
    """
    if not groups or not all(map(len, groups)):
        raise ValueError("there are no scores to take an interval of")
    draw = np.random.default_rng(seed)
    drawn = np.mean(
        [[statistic(items[draw.integers(len(items), size=len(items))]) for _ in range(samples)] for items in groups],
        axis=0,
    )
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    value = np.mean([statistic(items) for items in groups])
    return {name: round(float(number), 2) for name, number in (("value", value), ("low", low), ("high", high))}


def _decimal(text: str) -> Decimal | None:
    try:
        number = Decimal(text.strip().replace(",", "").replace("\u2212", "-").removeprefix("$"))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None
