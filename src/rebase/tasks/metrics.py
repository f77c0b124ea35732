"""Scores of single answers, and intervals over many.

Scores of single answers lie in 0 .. 1. Means and intervals over many are percentages, 0 .. 100, as the published
tables have them.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from rapidfuzz.distance import LCSseq

from rebase.records import Metric

if TYPE_CHECKING:
    from sacrebleu.metrics.chrf import CHRF

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ROUGE_WORD = re.compile(r"[a-z0-9]+")
#: Draws of a permutation test, and how many of them are held at once.
_DRAWS, _DRAWS_AT_ONCE = 9999, 500
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score(metric: Metric, prediction: str, answers: Sequence[str]) -> float:
    """The score of an extracted answer against the accepted ones, 0 .. 1: the best over them."""
    compare: Callable[[str, str], float] = {
        "exact_match": exact_match,
        "f1": f1,
        "accuracy": same_label,
        "numeric_match": same_number,
        "chrf": chrf,
        "rouge_l": rouge_l,
    }[metric]
    return max((compare(prediction, answer) for answer in answers), default=0.0)


def normalize_answer(text: str) -> str:
    """SQuAD's normalization: lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """1 where both are the same after SQuAD's normalization (Rajpurkar et al., 2016)."""
    return float(normalize_answer(prediction) == normalize_answer(answer))


def f1(prediction: str, answer: str) -> float:
    """Harmonic mean of word precision and recall after SQuAD's normalization, as its official v1.1 script has it.

    Two answers of which nothing is left share no word: 0.
    """
    predicted, gold = normalize_answer(prediction).split(), normalize_answer(answer).split()
    shared = (Counter(predicted) & Counter(gold)).total()
    return 2 * shared / (len(predicted) + len(gold)) if shared else 0.0


def same_label(prediction: str, answer: str) -> float:
    """1 for the same label, without regard to case and surrounding space."""
    return float(prediction.strip().casefold() == answer.strip().casefold())


def same_number(prediction: str, answer: str) -> float:
    """1 for the same number: ``1800``, ``1,800`` and ``$1800.0`` are alike; other text is none."""
    left, right = _decimal(prediction), _decimal(answer)
    return float(left is not None and left == right)


def chrf(prediction: str, answer: str) -> float:
    """The chrF++ of one answer, 0 .. 1: sacrebleu's chrF with word order 2 (Popović, 2017).

    The corpus's score, which is published, is not the mean of these: see ``bootstrap_chrf``.
    """
    return _chrf_plus_plus().sentence_score(prediction, [answer]).score / 100


def rouge_l(prediction: str, answer: str) -> float:
    """ROUGE-L, 0 .. 1: the F1 of the longest common subsequence of words (Lin, 2004).

    As Google's rouge-score has it without stemming: words are runs of ASCII letters and digits, lower-cased.
    """
    predicted, gold = (_ROUGE_WORD.findall(text.lower()) for text in (prediction, answer))
    shared = LCSseq.similarity(predicted, gold)
    return 2 * shared / (len(predicted) + len(gold)) if shared else 0.0


def bootstrap_interval(scores: Sequence[float], samples: int, confidence: float, seed: int) -> dict[str, float]:
    """Mean of per-item scores with its percentile bootstrap interval, as percentages: ``value``, ``low``, ``high``.

    Items are drawn with replacement ``samples`` times (Efron's percentile method). Differences of two systems on
    the same items make a paired interval.
    """
    values = np.asarray(scores, dtype=np.float64) * 100
    return _bootstrap(lambda drawn: float(values[drawn].mean()), len(values), samples, confidence, seed)


def bootstrap_means(groups: Sequence[Sequence[float]], samples: int, confidence: float, seed: int) -> dict[str, float]:
    """The mean of the groups' mean scores, each group counting alike, as ``bootstrap_interval`` has it.

    Items are drawn anew within each group: the interval is of these groups, not of others like them.
    """
    draw = np.random.default_rng(seed)
    scores = [np.asarray(group, dtype=np.float64) * 100 for group in groups]
    if not scores or not all(map(len, scores)):
        raise ValueError("there are no scores to take an interval of")
    drawn = np.mean([group[draw.integers(len(group), size=(samples, len(group)))].mean(axis=1) for group in scores], 0)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    value = np.mean([group.mean() for group in scores])
    return {"value": round(float(value), 2), "low": round(float(low), 2), "high": round(float(high), 2)}


def bootstrap_chrf(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    samples: int,
    confidence: float,
    seed: int,
    baseline: Sequence[str] | None = None,
) -> dict[str, float]:
    """The corpus's chrF++ with its percentile bootstrap interval, as ``bootstrap_interval`` has it.

    This is the published score: n-grams are counted over the whole corpus, so that long answers weigh more than short
    ones, as they do not in the mean of ``chrf``. With the predictions of a ``baseline`` for the same items: the
    difference to its score, paired.
    """
    metric = _chrf_plus_plus()

    def statistics(texts: Sequence[str]) -> np.ndarray:
        """[items, 3 * 8]: how many n-grams of each order text and answer have, and how many of them both."""
        rows = [
            metric._extract_corpus_statistics([text], [[answer] for answer in accepted])[0]
            for text, accepted in zip(texts, answers, strict=True)
        ]
        return np.asarray(rows, dtype=np.int64)

    ours = statistics(predictions)
    theirs = None if baseline is None else statistics(baseline)

    def corpus_score(drawn: np.ndarray) -> float:
        value = metric._compute_f_score(ours[drawn].sum(axis=0).tolist())
        return value if theirs is None else value - metric._compute_f_score(theirs[drawn].sum(axis=0).tolist())

    return _bootstrap(corpus_score, len(ours), samples, confidence, seed)


def permutation_p(gains: np.ndarray, seed: int) -> float:
    """How likely a mean gain is, to either side, where both systems are the same: a paired permutation test.

    ``gains`` are the items' differences ``[items]``; for each the systems may be swapped, which turns its sign.
    Fisher's test by 9,999 draws, what was seen being one more. scipy's holds all draws at once, gigabytes of them.
    """
    draw = np.random.default_rng(seed)
    unequal = gains[gains != 0]
    seen = abs(unequal.sum()) - 1e-9
    as_far = 1
    for start in range(0, _DRAWS, _DRAWS_AT_ONCE):
        signs = 2 * draw.integers(2, size=(min(_DRAWS_AT_ONCE, _DRAWS - start), len(unequal)), dtype=np.int8) - 1
        as_far += int((abs(signs @ unequal) >= seen).sum())
    return round(as_far / (_DRAWS + 1), 4)


def _bootstrap(
    statistic: Callable[[np.ndarray], float], items: int, samples: int, confidence: float, seed: int
) -> dict[str, float]:
    """A statistic of all items, and its interval over ``samples`` draws of as many; it is given their positions."""
    if not items:
        raise ValueError("there are no scores to take an interval of")
    draw = np.random.default_rng(seed)
    drawn = [statistic(draw.integers(items, size=items)) for _ in range(samples)]
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    value = statistic(np.arange(items))
    return {"value": round(value, 2), "low": round(float(low), 2), "high": round(float(high), 2)}


@cache
def _chrf_plus_plus() -> "CHRF":
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(word_order=2)


def _decimal(text: str) -> Decimal | None:
    try:
        number = Decimal(text.strip().replace(",", "").replace("\u2212", "-").removeprefix("$"))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None
