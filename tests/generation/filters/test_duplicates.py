from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebase.generation.filters.base import Rejection
from rebase.generation.filters.duplicates import Duplicates, jaccard, shingles
from tests.generation.filters.rows import row, texts


@settings(max_examples=30)
@given(
    st.lists(st.dictionaries(st.sampled_from("abc"), texts, min_size=1), max_size=12), st.sampled_from([0.5, 0.8, 1.0])
)
def test_duplicates_agree_with_brute_force(rows, threshold):
    duplicates = Duplicates(threshold)
    kept = {}
    for number, cells in enumerate(rows):
        candidate = row(cells, row_id=f"r{number:02}")
        alike = {
            other
            for other, its in kept.items()
            if list(its.values()) == list(cells.values()) or jaccard(shingles(its), shingles(cells)) >= threshold
        }
        rejection = duplicates.reject(candidate)
        assert (rejection.detail in alike) if rejection else not alike
        if rejection is None:
            duplicates.keep(candidate)
            kept[candidate.row_id] = cells
    assert set(duplicates.of) == set(kept)
    assert sorted([*kept, *(row_id for row_ids in duplicates.of.values() for row_id in row_ids)]) == sorted(
        f"r{number:02}" for number in range(len(rows))
    )


def test_near_duplicates_at_the_threshold_are_found():
    """Pairs of similarity just above 0.8 among prose of many words: MinHash must propose nearly all of them."""
    found_count = 0
    for pair in range(60):
        words = [f"w{pair}x{number}" for number in range(102)]
        duplicates = Duplicates(0.8)
        duplicates.keep(row(" ".join(words), row_id="first"))
        # 100 shingles each, 90 of them shared: 90 / 110 = 0.82.
        changed = [*words[:92], *(f"new{number}" for number in range(10))]
        found_count += duplicates.reject(row(" ".join(changed))) == Rejection("duplicate", "first")
    assert found_count == 60


def test_the_best_ranked_of_several_originals_is_named():
    words = [f"w{number}" for number in range(100)]
    rows = [[*words[:95], *(f"{name}{number}" for number in range(12))] for name in "ab"]
    duplicates = Duplicates(0.8)
    for name, text in zip("ab", rows, strict=True):
        assert duplicates.reject(row(" ".join(text), row_id=name)) is None
        duplicates.keep(row(" ".join(text), row_id=name))
    assert duplicates.reject(row(" ".join(words))).detail == "a"


def test_rows_without_words_are_duplicates_only_when_they_are_equal():
    duplicates = Duplicates(0.8)
    duplicates.keep(row({"a": "1", "b": "2"}, row_id="first"))
    assert duplicates.reject(row({"x": "1", "y": "2"})).detail == "first"
    assert duplicates.reject(row({"a": "1", "b": "3"})) is None


TEMPLATE = "Compute the result of the expression, and give the number alone, without any words before or after it."


@pytest.mark.parametrize(
    ("first", "second", "are_duplicates"),
    [
        ({"input": "3 + 5", "output": "8"}, {"input": "12 * 7", "output": "84"}, False),
        ({"input": "3 + 5", "output": "8"}, {"input": "3 * 5", "output": "8"}, False),
        ({"input": "[2, 4, 8]", "options": "1; 2; 3"}, {"input": "[3, 9, 27]", "options": "1; 2; 3"}, False),
        ({"input": "3 + 5", "output": "8"}, {"x": "3+5", "y": "8", "id": "17"}, True),
        ({"input": "3 + 5", "output": "8"}, {"input": "3 + 5", "numbers": "3; 5"}, True),
        ({"id": "17", "label": "0"}, {"id": "203"}, True),
        ({"date": "2020-01-02", "time": "12:30"}, {"date": "03/04/2021 12:31"}, True),
        ({"version": "1.0.2", "isbn": "3-16-148410-0"}, {"version": "2.0.1"}, True),
    ],
)
def test_rows_of_one_template_differ_in_their_numbers(first, second, are_duplicates):
    duplicates = Duplicates(0.8)
    duplicates.keep(row({"instruction": TEMPLATE} | first, row_id="first"))
    assert (duplicates.reject(row({"instruction": TEMPLATE} | second)) is not None) == are_duplicates


def test_by_cell_two_questions_about_one_passage_are_no_duplicates():
    passage = " ".join(f"word{number}" for number in range(60))
    rows = {
        "first": {"passage": passage, "question": "Who built the stone bridge?", "year": "1802"},
        "other question": {"passage": passage, "question": "When was the mill sold?", "year": "1802"},
        "other passage": {"passage": passage.upper()[::-1], "question": "Who built the stone bridge?", "year": "1802"},
        "copy": {"passage": f"{passage} end", "question": "who built the stone bridge", "year": "1802"},
    }
    duplicates, by_cell = Duplicates(0.8), Duplicates(0.8, by_cell=True)
    kept = []
    for name, cells in rows.items():
        candidate = row(cells, row_id=name)
        if by_cell.reject(candidate) is None:
            by_cell.keep(candidate)
            kept.append(name)
    assert kept == ["first", "other question", "other passage"]
    assert by_cell.of["first"] == ["copy"]
    duplicates.keep(row(rows["first"], row_id="first"))
    assert duplicates.reject(row(rows["other question"], row_id="second"))


def test_a_row_is_sketched_once(monkeypatch):
    sketched = Counter()
    monkeypatch.setattr(
        "rebase.generation.filters.duplicates.shingles",
        lambda cells: sketched.update(cells.values()) or shingles(cells),
    )
    duplicates = Duplicates(0.8)
    for number in range(5):
        candidate = row(f"number {number} of some rows", row_id=str(number))
        assert duplicates.reject(candidate) is None
        duplicates.keep(candidate)
    assert set(sketched.values()) == {1}


def test_of_a_huge_row_only_the_beginning_is_sketched():
    assert len(shingles({str(number): f"column {number} says this" for number in range(20_000)})) == 10_000


hashes = st.frozensets(st.integers(0, 5)).map(lambda hash_set: np.array(sorted(hash_set), dtype=np.uint64))


@given(hashes, hashes)
def test_jaccard(first, second):
    one, other = set(first.tolist()), set(second.tolist())
    assert (
        jaccard(first, second) == jaccard(second, first) == (len(one & other) / len(one | other) if one or other else 1)
    )
