"""The loops of the scan, compiled by numba. Import this module inside functions: numba is heavy."""

import numpy as np
from numba import float32, float64, int8, int16, int32, int64, njit, prange, types, uint16, void


def _read(kind: types.Type, dimensions: int) -> types.Type:
    """The type of a contiguous array that is only read, so that memory-mapped arrays fit too."""
    return types.Array(kind, dimensions, "C", readonly=True)


_VALUES = _read(float32, 1)


@njit(
    void(
        _read(int8, 2), _VALUES, _VALUES, _read(int16, 2), _VALUES, _VALUES, _VALUES, float32[:, ::1], float32[:, ::1]
    ),
    parallel=True,
    cache=True,
)
def bound_texts(  # noqa: PLR0913, PLR0917  # numba takes arrays, no records of arrays
    codes: np.ndarray,
    scales: np.ndarray,
    errors: np.ndarray,
    queries: np.ndarray,
    query_scales: np.ndarray,
    query_norms: np.ndarray,
    query_errors: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
) -> None:
    """Write bounds ``[Q, T]`` of the similarity of texts, int8 ``[T, d]``, to queries, int16 ``[Q, d]``.

    The similarity is scale · query scale · (code · query code); its error is at most error · query norm + query error.
    The caller ensures that no sum of products exceeds int32.
    """
    # Sums are int32, in an array of their own: then the compiler uses the processor's multiply-add of 16-bit
    # integers. With floats in the same loop it does not, and the loop takes twice as long.
    dots = np.empty((queries.shape[0], codes.shape[0]), dtype=np.int32)
    for text in prange(codes.shape[0]):
        for query in range(queries.shape[0]):
            total = np.int32(0)
            for axis in range(codes.shape[1]):
                total += np.int32(codes[text, axis]) * np.int32(queries[query, axis])
            dots[query, text] = total
    for query in range(queries.shape[0]):
        for text in prange(codes.shape[0]):
            near = np.float32(dots[query, text]) * scales[text] * query_scales[query]
            error = errors[text] * query_norms[query] + query_errors[query]
            lower[query, text] = near - error
            upper[query, text] = near + error


@njit(
    void(
        _read(float32, 2), _read(float32, 2), _read(int32, 1), _read(int64, 1), int64, float64[:, ::1], float64[:, ::1]
    ),
    parallel=True,
    cache=True,
)
def bound_rows(
    text_lower: np.ndarray,
    text_upper: np.ndarray,
    cell_text: np.ndarray,
    row_start: np.ndarray,
    first_row: int,
    lower: np.ndarray,
    upper: np.ndarray,
) -> None:
    """Write for each query and row the maxima of the bounds ``[Q, T]`` of the row's cells.

    They go to ``lower`` and ``upper`` ``[Q, R]``, starting at ``first_row``; rows without cells are left unchanged.
    """
    for row in prange(len(row_start) - 1):
        for query in range(text_lower.shape[0]):
            low = np.float32(-np.inf)
            high = np.float32(-np.inf)
            for cell in range(row_start[row], row_start[row + 1]):
                low = max(low, text_lower[query, cell_text[cell]])
                high = max(high, text_upper[query, cell_text[cell]])
            if row_start[row] < row_start[row + 1]:
                lower[query, first_row + row] = low
                upper[query, first_row + row] = high


@njit(void(_read(uint16, 2), _read(int64, 1), _read(float64, 1), float64[:, ::1]), parallel=True, cache=True)
def widen(halves: np.ndarray, texts: np.ndarray, values: np.ndarray, exact: np.ndarray) -> None:
    """Write to ``exact`` ``[n, d]`` the chosen ``texts`` of half-precision vectors ``[T, d]``, given as bits.

    ``values`` has the number of every 16 bits: numpy's own conversion takes several times as long.
    """
    for number in prange(len(texts)):
        for axis in range(halves.shape[1]):
            exact[number, axis] = values[halves[texts[number], axis]]
