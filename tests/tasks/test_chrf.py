import numpy as np
import pytest
from sacrebleu.metrics.chrf import CHRF

from rebase.tasks.chrf import corpus_chrf, count_ngrams

PREDICTIONS = ["in the den", "a tall bird", ""]
REFERENCES = [["in the den", "the den"], ["the tall heron"], ["x"]]


def test_counts_of_items_add_up_to_the_corpus_score_of_sacrebleu():
    """The adapter relies on two private methods: statistics by item, and the score of their sum."""
    counts = count_ngrams(PREDICTIONS, REFERENCES)
    assert counts.shape == (3, 24)
    first_references = [[references[0] for references in REFERENCES], [references[-1] for references in REFERENCES]]
    public = CHRF(word_order=2).corpus_score(PREDICTIONS, first_references).score
    assert corpus_chrf(counts) == pytest.approx(public)
    assert corpus_chrf(counts[np.array([0, 0])]) == pytest.approx(100)
