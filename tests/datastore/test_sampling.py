import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.datastore import sampling
from rebase.datastore.sampling import systematic_positions, systematic_sample


@given(st.integers(0, 500), st.integers(1, 50))
def test_sample_is_bounded_ordered_and_knows_its_positions(count, cap):
    sample, total = systematic_sample(map(str, range(count)), cap)
    assert total == count
    assert len(sample) == min(cap, count)
    assert all(item == str(position) for position, item in sample)
    assert (np.diff([position for position, _ in sample]) > 0).all()


@given(st.integers(1, 3000), st.integers(2, 60))
def test_sample_is_even(total, cap):
    positions = [position for position, _ in systematic_sample(range(total), cap)[0]]
    assert positions[0] == 0
    # No stretch of the stream goes without a row for much longer than total / cap.
    assert np.diff([*positions, total]).max() <= 4 * np.ceil(total / cap)


def test_sample_of_nothing():
    assert systematic_sample([], 5) == ([], 0)


class Row:
    """A row that counts how many there are."""

    alive = most = 0

    def __init__(self):
        Row.alive += 1
        Row.most = max(Row.most, Row.alive)

    def __del__(self):
        Row.alive -= 1


def test_sample_holds_few_rows_of_a_long_stream():
    sample, total = systematic_sample((Row() for _ in range(20_000)), 100)
    assert (len(sample), total) == (100, 20_000)
    assert Row.most < 210


@pytest.mark.parametrize("kind", [str, lambda text: {"text": text}])
def test_sample_of_long_rows_is_bounded_by_their_size(monkeypatch, kind):
    monkeypatch.setattr(sampling, "MAX_HELD", 100_000)
    sample, total = systematic_sample((kind("x" * 10_000) for _ in range(500)), 400)
    assert total == 500
    assert 2 <= len(sample) <= 10
    assert [position for position, _ in systematic_sample([kind("x" * 200_000)], 400)[0]] == [0]


@given(st.integers(0, 200), st.integers(1, 50))
def test_even_positions(count, cap):
    positions = systematic_positions(count, cap)
    assert len(positions) == min(count, cap)
    assert len(set(positions.tolist())) == len(positions)
    assert all(0 <= position < count for position in positions)
