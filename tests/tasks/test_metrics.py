from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.tasks.chrf import chrf, corpus_chrf, count_ngrams
from rebase.tasks.metrics import (
    bootstrap_chrf,
    bootstrap_interval,
    exact_match,
    f1,
    normalize_answer,
    rouge_l,
    same_label,
    same_number,
    score,
)

words = st.text(alphabet="ab th e.,'", max_size=20)


def test_normalization_is_the_official_one() -> None:
    assert normalize_answer("The  Eiffel-Tower, a 'tower' in an area!") == "eiffeltower tower in area"
    assert normalize_answer("theatre") == "theatre"
    # Only ASCII punctuation goes, as in the official script.
    assert normalize_answer("\u201cColza\u201d") == "\u201ccolza\u201d"


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "overlap"),
    [
        ("the colza oil.", "Colza oil", 1.0, 1.0),
        ("colza", "colza oil", 0.0, 2 / 3),
        ("oil oil", "oil", 0.0, 2 / 3),
        ("rape oil", "colza oil", 0.0, 0.5),
        ("paraffin", "colza oil", 0.0, 0.0),
        ("", "colza oil", 0.0, 0.0),
        ("the", "a", 1.0, 0.0),  # nothing is left of either: the v1.1 script finds no common word
        # By the v1.1 script's definition: an article is a word of its own, punctuation goes without leaving a space.
        ("In the 1990s", "1990s", 0.0, 2 / 3),
        ("a.m.", "am", 1.0, 1.0),
        ("well-known", "well known", 0.0, 0.0),
        ("$5,000", "5000", 1.0, 1.0),
        ("An theory the", "theory", 1.0, 1.0),
        ("the colza oil of the lamp", "colza oil", 0.0, 2 * (2 / 4) * 1 / (2 / 4 + 1)),
        ("oil oil lamp", "oil lamp lamp", 0.0, 2 / 3),
    ],
)
def test_squad_cases(prediction: str, answer: str, exact: float, overlap: float) -> None:
    assert exact_match(prediction, answer) == exact
    assert f1(prediction, answer) == pytest.approx(overlap)


@given(left=words, right=words)
def test_f1_is_symmetric_and_bounded(left: str, right: str) -> None:
    assert f1(left, right) == f1(right, left)
    assert 0 <= f1(left, right) <= 1
    if exact_match(left, right) and normalize_answer(left):
        assert f1(left, right) == 1


def test_best_over_the_accepted_answers() -> None:
    assert score("exact_match", "oil", ["colza oil", "oil"]) == 1
    assert score("f1", "oil", ["colza oil", "lamp"]) == pytest.approx(2 / 3)
    assert score("accuracy", "Sport", ["sport"]) == 1
    assert score("numeric_match", "18", ["17", "18.0"]) == 1
    assert score("f1", "oil", []) == 0


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("1,800", "1800", 1), ("$18.50", "18.5", 1), ("18", "19", 0), ("", "0", 0), ("eighteen", "18", 0),
        ("0.1", ".10", 1), ("nan", "nan", 0), ("\u22125", "-5", 1),
    ],
)  # fmt: skip
def test_numbers(left: str, right: str, same: float) -> None:
    assert same_number(left, right) == same


def test_labels() -> None:
    assert same_label(" Sport", "sport ") == 1
    assert same_label("sports", "sport") == 0


CODE = [
    ("x.sort()", ["x.sort()"]),
    ("print(a)", ["print(b)", "print(a, b)"]),
    ("", ["df.head()"]),
    ("import os\nos.listdir('.')", ["os.listdir('/tmp')"]),
    ("辞書を sort", ["辞書を並べる"]),
]


def test_chrf_is_that_of_sacrebleu() -> None:
    from sacrebleu.metrics import CHRF

    reference = CHRF(word_order=2)
    for prediction, answers in CODE:
        assert score("chrf", prediction, answers) == pytest.approx(
            reference.sentence_score(prediction, answers).score / 100
        )
    # A perfect answer, none at all, and sacrebleu 2.6's own number for one between.
    assert chrf("x.sort()", "x.sort()") == pytest.approx(1)
    assert chrf("", "x.sort()") == 0
    assert chrf("print(a)", "print(b)") == pytest.approx(0.5237, abs=1e-4)


def test_the_corpus_chrf_is_that_of_sacrebleu_and_its_differences_are_paired() -> None:
    from sacrebleu.metrics import CHRF

    predictions, answers = [text for text, _ in CODE], [accepted[:1] for _, accepted in CODE]
    metric = CHRF(word_order=2)
    published = metric.corpus_score(predictions, [[first for (first,) in answers]]).score
    interval = bootstrap_chrf(predictions, answers, 200, 0.9, 1)
    assert interval["value"] == pytest.approx(published, abs=0.005)
    assert 0 < interval["low"] < interval["high"] < 100
    nothing = ["" for _ in predictions]
    gain = bootstrap_chrf(predictions, answers, 20, 0.9, 1, nothing)
    alone = bootstrap_chrf(predictions, answers, 20, 0.9, 1)
    assert {name: gain[name] for name in alone} == alone
    none = {"value": 0, "low": 0, "high": 0, "p": 1}
    assert bootstrap_chrf(predictions, answers, 20, 0.9, 1, predictions) == none
    # Several answers to an item, as many as it has: sacrebleu wants as many for each.
    references = [[accepted[place % len(accepted)] for _, accepted in CODE] for place in (0, 1)]
    several = bootstrap_chrf(predictions, [accepted for _, accepted in CODE], 20, 0.9, 1)
    assert several["value"] == pytest.approx(metric.corpus_score(predictions, references).score, abs=0.005)


def test_p_of_chrf_is_the_share_of_swaps_with_a_larger_difference_of_the_corpus_scores() -> None:
    predictions, answers = [text for text, _ in CODE], [accepted for _, accepted in CODE]
    baseline = ["x.sorted()", "print(b)", "df.head", "os.listdir", "辞書"]
    counts = np.stack([count_ngrams(texts, answers) for texts in (predictions, baseline)], axis=1)
    swaps = product([False, True], repeat=len(CODE))
    swapped = (np.where(np.array(swap)[:, None, None], counts[:, ::-1], counts) for swap in swaps)
    gains = np.array([corpus_chrf(pair[:, 0]) - corpus_chrf(pair[:, 1]) for pair in swapped])
    exact = np.mean(abs(gains) >= abs(gains[0]) - 1e-9)
    assert 0.2 < exact < 0.9
    assert bootstrap_chrf(predictions, answers, 20, 0.9, 1, baseline)["p"] == pytest.approx(exact, abs=0.02)


def test_no_scores_have_no_interval() -> None:
    with pytest.raises(ValueError, match="no scores"):
        bootstrap_interval([], 10, 0.9, 1)


@given(scores=st.lists(st.floats(0, 1), min_size=1, max_size=30), seed=st.integers(0, 5))
def test_interval_holds_the_mean_of_constant_scores_and_is_ordered(scores: list[float], seed: int) -> None:
    interval = bootstrap_interval(scores, 60, 0.9, seed)
    assert interval == bootstrap_interval(scores, 60, 0.9, seed)
    assert interval["value"] == pytest.approx(100 * float(np.mean(scores)), abs=0.01)
    assert 0 <= interval["low"] <= interval["high"] <= 100.01
    constant = bootstrap_interval([scores[0]] * 5, 20, 0.9, seed)
    assert constant["low"] == constant["high"] == constant["value"]


def test_interval_covers_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    inside = 0
    for number in range(200):
        interval = bootstrap_interval((draw.random(60) < 0.3).astype(float).tolist(), 200, 0.9, number)
        inside += interval["low"] <= 30 <= interval["high"]
    assert 0.82 <= inside / 200 <= 0.96


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),  # as rouge-score 0.1.2 says, without stemming
    [
        ("the cat sat on the mat", "the cat lay on a mat", 2 / 3),
        ("Bees dance.", "Bees, they dance!", 0.8),
        ("a b c d", "d c b a", 0.25),
        ("It's 3.5 km", "its 3 5 km", 2 / 3),
        ("The ferry stops in winter", "In winter the ferry stops", 0.6),
        ("", "x", 0.0),
        ("", "", 0.0),
    ],
)
def test_rouge_l_is_the_official_one(prediction: str, answer: str, expected: float) -> None:
    assert rouge_l(prediction, answer) == pytest.approx(expected)
    assert score("rouge_l", prediction, ["unlike", answer]) == pytest.approx(expected)
