"""chrF++ by sacrebleu (Popović, 2017), and the two private methods of it that resampling needs.

sacrebleu can score a corpus, but not from statistics that were counted before, so that a bootstrap would count all
n-grams again for each draw. ``tests/tasks/test_chrf.py`` checks that the parts add up to its public score.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np


def chrf(prediction: str, reference: str) -> float:
    """Return the chrF++ of one answer, 0 to 1. Published scores are a corpus's (``metrics.bootstrap_chrf``)."""
    return float(_metric().sentence_score(prediction, [reference]).score) / 100


def count_ngrams(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Count the n-grams of each order in prediction, reference and both: ``[items, 3 * 8]``."""
    rows = [
        _metric()._extract_corpus_statistics([prediction], [[reference] for reference in item_references])[0]
        for prediction, item_references in zip(predictions, references, strict=True)
    ]
    return np.asarray(rows, dtype=np.int64)


def corpus_chrf(counts: np.ndarray) -> float:
    """Return the chrF++ of a corpus, 0 to 100, from the counts of its items ``[items, 3 * 8]``."""
    return float(_metric()._compute_f_score(counts.sum(axis=0).tolist()))


@cache
def _metric() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(word_order=2)
