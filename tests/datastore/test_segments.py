import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rebase.datastore.segments import Segment, quantize
from rebase.pipelines.index.nodes import build_segment
from tests.datastore.stores import many


@given(st.integers(1, 700), st.integers(0, 2**32 - 1), st.floats(-12, 4))
def test_codes_are_within_their_error(dimension, seed, exponent):
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(20, dimension)) * 10.0 ** (exponent * random.random((20, dimension)))
    vectors[0] = 0
    vectors[1, 1:] = 0
    codes, scales, errors, reach = quantize(vectors)
    stands_for = scales[:, None].astype(np.float64) * codes
    assert (np.linalg.norm(vectors - stands_for, axis=1) <= errors).all()
    assert np.linalg.norm(stands_for, axis=1).max() <= reach


def test_a_segment_is_the_same_from_its_table():
    tables, _ = many(datasets=2)
    segment = build_segment({"a": tables[0], "b": tables[1]})
    again = Segment.from_table(segment.to_table())
    for name, value in vars(segment).items():
        np.testing.assert_array_equal(value, getattr(again, name)) if isinstance(value, np.ndarray) else None
    assert (again.columns, again.encoder, again.datasets) == (segment.columns, "e", ["a", "b"])
