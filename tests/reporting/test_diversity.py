import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rebase.reporting.diversity import distinct_ngrams, distinct_texts, mean_cosine, measure_lengths, measure_texts

# Few words, so that texts are often near to one another; lengths of which 2 LCS / (m + n) can be 0.7 exactly.
texts = st.lists(st.lists(st.sampled_from("abc"), max_size=12), max_size=12)


def rouge_l(one, other):
    """2 LCS / (m + n), by the table that the books have."""
    if not one and not other:
        return 1.0
    row = [0] * (len(other) + 1)
    for word in one:
        before = row
        row = [0]
        for column, another in enumerate(other):
            row.append(before[column] + 1 if word == another else max(before[column + 1], row[column]))
    return 2 * row[-1] / (len(one) + len(other))


def distinct_one_by_one(lists):
    distinct = []
    mask = []
    for words in lists:
        mask.append(all(rouge_l(words, earlier) < 0.7 for earlier in distinct))
        distinct += [words] * mask[-1]
    return mask


def test_the_reference_is_rouge_l():
    # The example of Lin (2004), section 3.
    gold = ["police", "killed", "the", "gunman"]
    assert rouge_l(["police", "kill", "the", "gunman"], gold) == 0.75
    assert rouge_l(["the", "gunman", "kill", "police"], gold) == 0.5


@given(texts)
@example([list("abcdefgxyz"), list("abcdefguvw")])  # 0.7 exactly: not distinct
@example([list("abcdefgxyz"), list("abcdefguvw1")])  # 14 / 21
def test_distinct_texts_are_those_of_the_plain_definition(lists):
    assert distinct_texts(lists).tolist() == distinct_one_by_one(lists)


def test_distinct_texts_over_several_blocks():
    draw = np.random.default_rng(1)
    lists = [draw.choice(list("abcdefghij"), size=draw.integers(4, 9)).tolist() for _ in range(600)]
    mask = distinct_texts(lists)
    assert mask.tolist() == distinct_one_by_one(lists)
    assert mask[400:].any()
    assert not mask[400:].all()


def test_a_near_text_of_one_that_is_not_distinct_may_be_distinct():
    one, near, far = list("abcdefgh"), list("abcdefxy"), list("abcdxyzw")
    assert rouge_l(near, far) >= 0.7 > rouge_l(one, far)
    assert distinct_texts([one, near, far]).tolist() == [True, False, True]


@given(st.integers(2, 12), st.integers(1, 5), st.integers(0, 99))
def test_mean_cosine_is_that_of_all_pairs(n, size, seed):
    vectors = np.random.default_rng(seed).normal(size=(n, size))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [float(one @ other) for one, other in itertools.combinations(vectors, 2)]
    assert mean_cosine(vectors.astype(np.float32)) == pytest.approx(np.mean(pairs), abs=1e-6)


def test_distinct_ngrams_are_counted_over_all_texts_but_not_across_them():
    lists = [list("abab"), list("abc")]
    assert distinct_ngrams(lists, 1) == 3 / 7
    assert distinct_ngrams(lists, 2) == 3 / 5


def test_texts_of_other_scripts_and_code():
    japanese = ["文字列の単語の順序を逆にする", "文字列の単語の順序を逆にした。", "リストを並べ替える"]
    code = ["sorted(prices, key=prices.get)", "sorted(prices,\n key = prices.get)", "open(path).read()"]
    for lines in (japanese, code):
        assert measure_texts(lines, np.eye(3))["distinct_share"] == pytest.approx(2 / 3)


def test_too_few_texts_are_measured_as_far_as_it_goes():
    nothing = {"distinct_share": None, "mean_cosine": None, "distinct_1": None, "distinct_2": None}
    assert measure_texts([], np.empty((0, 3))) == nothing
    assert measure_texts(["owl"], np.eye(1)) == nothing | {"distinct_share": 1, "distinct_1": 1}
    assert measure_texts(["", "?!"], np.eye(2)) == nothing | {"distinct_share": 0.5, "mean_cosine": 0}


def test_lengths_are_in_words():
    assert measure_lengths([]) is None
    assert measure_lengths(["owl"]) == {"mean": 1, "p10": 1, "p50": 1, "p90": 1}
    lengths = measure_lengths(["one two three", "", "鯨は海に"])
    assert lengths["p50"] == 2
    assert math.isclose(lengths["mean"], 5 / 3)
