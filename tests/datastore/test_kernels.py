"""The compiled loops do what numpy does slowly, up to the largest numbers that they are given."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rebase.datastore.kernels import bound_rows, bound_texts, widen

SEEDS = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@given(SEEDS, st.integers(1, 9), st.integers(1, 4), st.sampled_from([1, 7, 384, 1024]))
def test_bounds_of_texts_are_the_similarity_with_its_error_on_either_side(random, texts, count, dimension):
    largest = min(2**15 - 1, (2**31 - 1) // (127 * dimension))  # as the search chooses it
    codes = random.integers(-127, 128, (texts, dimension))
    queries = random.integers(-largest, largest + 1, (count, dimension))
    codes[0], queries[0] = 127, largest  # no sum of products is greater
    scales, errors = random.random((2, texts)).astype(np.float32)
    query_scales, query_norms, query_errors = random.random((3, count)).astype(np.float32)
    lower, upper = np.empty((2, count, texts), np.float32)
    bound_texts(
        codes.astype(np.int8), scales, errors, queries.astype(np.int16), query_scales, query_norms, query_errors,
        lower, upper,
    )  # fmt: skip
    similarity = (queries @ codes.T) * np.outer(query_scales, scales).astype(np.float64)
    error = np.outer(query_norms, errors) + query_errors[:, None]
    tolerance = 1e-6 * (np.abs(similarity) + error).max()
    np.testing.assert_allclose(lower, similarity - error, rtol=0, atol=tolerance)
    np.testing.assert_allclose(upper, similarity + error, rtol=0, atol=tolerance)


@given(SEEDS, st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=6), st.integers(0, 3))
def test_bounds_of_a_row_are_the_maxima_of_its_cells_and_other_rows_keep_theirs(random, rows, first):
    texts = random.random((2, 3, 5)).astype(np.float32)  # lower and upper, by query and text
    bounds = np.full((2, 3, first + len(rows) + 1), -9.0)
    cells = np.array([text for row in rows for text in row], np.int32)
    starts = np.cumsum([0, *map(len, rows)])
    bound_rows(*texts, cells, starts, first, *bounds)
    expected = np.full_like(bounds, -9.0)
    for number, row in enumerate(rows):
        if row:
            expected[:, :, first + number] = texts[:, :, row].max(axis=2)
    np.testing.assert_array_equal(bounds, expected)


def test_halves_are_widened_as_numpy_does():
    bits = np.arange(2**16, dtype=np.uint16)
    values = bits.view(np.float16).astype(np.float64)
    texts = np.array([255, 0, 7, 7])
    exact = np.empty((len(texts), 256))
    widen(bits.reshape(256, 256), texts, values, exact)
    np.testing.assert_array_equal(exact, values.reshape(256, 256)[texts])
