import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from rebase.datastore import sampling
from rebase.datastore.sampling import systematic_positions, systematic_sample


def batches_of(sizes):
    starts = np.cumsum([0, *sizes])
    return [pa.table({"n": np.arange(start, start + size)}) for start, size in zip(starts, sizes, strict=False)]


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 50))
def test_sample_is_bounded_ordered_and_knows_its_positions(sizes, cap):
    pieces, positions, total = systematic_sample(batches_of(sizes), cap)
    assert total == sum(sizes)
    assert len(positions) == min(cap, total)
    assert [value for piece in pieces for value in piece["n"].to_pylist()] == positions.tolist()
    assert (np.diff(positions) > 0).all()


@given(st.integers(1, 3000), st.integers(2, 60), st.integers(1, 500))
def test_sample_is_even_whatever_the_batches(total, cap, batch):
    at_once = systematic_sample(batches_of([total]), cap)[1]
    split = systematic_sample(batches_of([batch] * (total // batch) + [total % batch]), cap)[1]
    for positions in (at_once, split):
        gaps = np.diff([*positions, total])
        assert positions[0] == 0
        # No stretch of the stream goes without a row for much longer than total / cap.
        assert gaps.max() <= 4 * np.ceil(total / cap)


def test_sample_of_nothing():
    pieces, positions, total = systematic_sample([], 5)
    assert (pieces, positions.tolist(), total) == ([], [], 0)


def test_sample_takes_tables_whose_types_differ():
    tables = [pa.table({"a": [1, 2]}), pa.table({"a": ["x", "y"], "b": [None, True]})]
    pieces, positions, _ = systematic_sample(tables, 10)
    assert [row for piece in pieces for row in piece.to_pylist()][1:3] == [{"a": 2}, {"a": "x", "b": None}]
    assert positions.tolist() == [0, 1, 2, 3]


def test_sample_holds_few_rows_of_a_long_stream():
    def stream():
        for start in range(0, 200_000, 1000):
            yield pa.table({"n": np.arange(start, start + 1000)})
        # When the stream ends, what is held must be of the order of the cap.
        assert pa.total_allocated_bytes() - before < 200_000

    before = pa.total_allocated_bytes()
    assert len(systematic_sample(stream(), 100)[1]) == 100


def test_sample_of_long_rows_is_bounded_by_its_bytes(monkeypatch):
    monkeypatch.setattr(sampling, "MAX_HELD_BYTES", 100_000)
    tables = (pa.table({"text": ["x" * 10_000] * 5, "n": range(start, start + 5)}) for start in range(0, 500, 5))
    pieces, positions, total = systematic_sample(tables, 400)
    assert total == 500
    assert 2 <= len(positions) <= 10
    assert [number for piece in pieces for number in piece["n"].to_pylist()] == positions.tolist()
    pieces, positions, _ = systematic_sample([pa.table({"text": ["x" * 200_000]})], 400)
    assert positions.tolist() == [0]


@given(st.integers(0, 200), st.integers(1, 50))
def test_even_positions(count, cap):
    positions = systematic_positions(count, cap)
    assert len(positions) == min(count, cap)
    assert len(set(positions.tolist())) == len(positions)
    assert all(0 <= position < count for position in positions)
