"""The loops of the scan, compiled by numba. Import it inside functions: numba is heavy."""

import numpy as np
from numba import float32, float64, int8, int16, int32, int64, njit, prange, types, void


def _array(kind: types.Type, dimensions: int) -> types.Type:
    """A contiguous array that is only read: also one that is memory-mapped."""
    return types.Array(kind, dimensions, "C", readonly=True)


@njit(void(_array(int8, 2), _array(int16, 2), float32[:, ::1]), parallel=True, cache=True)
def dot_codes(codes: np.ndarray, queries: np.ndarray, dots: np.ndarray) -> None:
    """Integer dot products: int8 ``[T, d]`` with int16 ``[Q, d]`` into float32 ``[Q, T]``.

    The caller sees to it that no sum leaves int32.
    """
    texts, dimension = codes.shape
    for text in prange(texts):
        for query in range(queries.shape[0]):
            # int32 all the way: the compiler then takes the processor's multiply-add of 16-bit integers.
            total = np.int32(0)
            for place in range(dimension):
                total += np.int32(codes[text, place]) * np.int32(queries[query, place])
            dots[query, text] = total


@njit(
    void(
        _array(float32, 2), _array(float32, 1), _array(float32, 1), _array(int32, 1), _array(int64, 1),
        _array(float64, 1), _array(float64, 1), _array(float64, 1), int64, float64[:, ::1], float64[:, ::1],
    ),
    parallel=True,
    cache=True,
)  # fmt: skip
def bound_rows(  # noqa: PLR0913, PLR0917  # numba takes arrays, no records of arrays
    dots: np.ndarray,
    scales: np.ndarray,
    errors: np.ndarray,
    cell_text: np.ndarray,
    row_start: np.ndarray,
    query_scales: np.ndarray,
    query_norms: np.ndarray,
    query_errors: np.ndarray,
    first_row: int,
    lower: np.ndarray,
    upper: np.ndarray,
) -> None:
    """Per query and row the maxima over the row's cells of similarity - error and of similarity + error.

    ``dots`` ``[Q, T]`` are the integer dot products; a text's similarity is dots · scale · query scale, its error
    error · query norm + query error. The rows are written to ``lower`` and ``upper`` ``[Q, R]`` from ``first_row`` on;
    rows without cells keep what these hold.
    """
    for row in prange(len(row_start) - 1):
        for query in range(dots.shape[0]):
            low = -np.inf
            high = -np.inf
            for cell in range(row_start[row], row_start[row + 1]):
                text = cell_text[cell]
                near = dots[query, text] * scales[text] * query_scales[query]
                error = errors[text] * query_norms[query] + query_errors[query]
                low = max(low, near - error)
                high = max(high, near + error)
            if row_start[row] < row_start[row + 1]:
                lower[query, first_row + row] = low
                upper[query, first_row + row] = high
