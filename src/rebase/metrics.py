"""Scores of single answers, and intervals over many.

Scores of single answers lie in 0 .. 1. Means and intervals over many are percentages, 0 .. 100, as the published
tables have them.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

import numpy as np

from rebase.records import Metric

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score(metric: Metric, prediction: str, answers: Sequence[str]) -> float:
    """The score of an extracted answer against the accepted ones, 0 .. 1: the best over them."""
    compare = {
        "exact_match": exact_match,
        "f1": f1,
        "accuracy": same_label,
        "numeric_match": same_number,
    }[metric]
    return max((compare(prediction, answer) for answer in answers), default=0.0)


def normalise_answer(text: str) -> str:
    """SQuAD's normalisation: lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """1 where both are the same after SQuAD's normalisation (Rajpurkar et al., 2016)."""
    return float(normalise_answer(prediction) == normalise_answer(answer))


def f1(prediction: str, answer: str) -> float:
    """Harmonic mean of word precision and recall after SQuAD's normalisation, as its official v1.1 script has it.

    Two answers of which nothing is left share no word: 0.
    """
    predicted, gold = normalise_answer(prediction).split(), normalise_answer(answer).split()
    shared = (Counter(predicted) & Counter(gold)).total()
    return 2 * shared / (len(predicted) + len(gold)) if shared else 0.0


def same_label(prediction: str, answer: str) -> float:
    """1 for the same label, without regard to case and surrounding space."""
    return float(prediction.strip().casefold() == answer.strip().casefold())


def same_number(prediction: str, answer: str) -> float:
    """1 for the same number: ``1800``, ``1,800`` and ``$1800.0`` are alike; other text is none."""
    left, right = _decimal(prediction), _decimal(answer)
    return float(left is not None and left == right)


def bootstrap_interval(scores: Sequence[float], samples: int, confidence: float, seed: int) -> dict[str, float]:
    """Mean of per-item scores with its percentile bootstrap interval, as percentages: ``value``, ``low``, ``high``.

    Items are drawn with replacement ``samples`` times (Efron's percentile method). Differences of two systems on
    the same items make a paired interval.
    """
    values = np.asarray(scores, dtype=np.float64) * 100
    draw = np.random.default_rng(seed)
    means = [values[draw.integers(len(values), size=len(values))].mean() for _ in range(samples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"value": round(float(values.mean()), 2), "low": round(float(low), 2), "high": round(float(high), 2)}


def _decimal(text: str) -> Decimal | None:
    try:
        number = Decimal(text.strip().replace(",", "").replace("\u2212", "-").removeprefix("$"))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None
