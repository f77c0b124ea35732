"""The searchable form of embedded datasets: int8 codes with bounds of their error (docs/method.md section 3)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

from rebase.datastore.shards import metadata_of, with_metadata

#: Far above the rounding error of a similarity in single precision, far below the error of quantization.
ROUNDING = 1e-6
CODE_MAX = 127
#: How many vectors are converted to double precision at once, which bounds the memory.
TEXTS_AT_ONCE = 8192


@dataclass(frozen=True)
class Segment:
    """The searchable form of a run of ``D`` datasets with ``R`` rows, ``C`` cells and ``T`` texts.

    Datasets are in name order, their rows in the order of the dataset, cells sorted by row. The texts of a dataset are
    consecutive, in the order of its shard of vectors.

    Attributes:
        codes: int8 ``[T, d]``; ``scales[t] * codes[t]`` approximates the vector of text ``t``.
        scales: float32 ``[T]``.
        errors: float32 ``[T]``, no less than the distance between a vector and its approximation.
        reach: float64 ``[1]``, no less than the length of any approximation.
        descriptions: float16 ``[D, d]``, the vector of each dataset's description.
        cell_text: int32 ``[C]``, the text of each cell.
        cell_column: int32 ``[C]``, the column of each cell, a position among its dataset's ``columns``.
        row_start: int64 ``[R + 1]``; row ``r`` has the cells ``row_start[r]:row_start[r + 1]``.
        dataset_start: int64 ``[D + 1]``; dataset ``i`` has the rows ``dataset_start[i]:dataset_start[i + 1]``.
        text_start: int64 ``[D + 1]``; and the texts ``text_start[i]:text_start[i + 1]``.
        columns: the column names of each dataset, by the dataset's name.
        encoder: the identity of the encoder that made the vectors.

    """

    codes: np.ndarray
    scales: np.ndarray
    errors: np.ndarray
    reach: np.ndarray
    descriptions: np.ndarray
    cell_text: np.ndarray
    cell_column: np.ndarray
    row_start: np.ndarray
    dataset_start: np.ndarray
    text_start: np.ndarray
    columns: Mapping[str, list[str]]
    encoder: str

    @property
    def datasets(self) -> list[str]:
        """The names of the datasets, in order."""
        return list(self.columns)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.row_start) - 1

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return int(self.codes.shape[1])

    def to_table(self) -> pa.Table:
        """The segment as a table of one line and one column an array, which can be memory-mapped."""
        lists = {
            name: pa.LargeListArray.from_arrays([0, array.size], pa.array(np.ascontiguousarray(array).reshape(-1)))
            for name in _ARRAYS
            for array in [getattr(self, name)]
        }
        metadata = {"columns": dict(self.columns), "encoder": self.encoder, "dimension": self.dimension}
        return with_metadata(pa.table(lists), metadata)

    @classmethod
    def from_table(cls, table: pa.Table) -> "Segment":
        """The segment that ``to_table`` wrote; nothing is copied."""
        metadata = metadata_of(table)
        arrays = {name: table[name].chunk(0).flatten().to_numpy(zero_copy_only=True) for name in _ARRAYS}
        for name in ("codes", "descriptions"):
            arrays[name] = arrays[name].reshape(-1, metadata["dimension"])
        return cls(**arrays, columns=metadata["columns"], encoder=metadata["encoder"])


_ARRAYS = tuple(field.name for field in fields(Segment) if field.type is np.ndarray)


def quantize(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Quantize vectors ``[T, d]`` to int8 codes, float32 scales and float32 error bounds (docs/method.md section 3).

    A bound is no less than ‖v − scale · code‖, plus the rounding error of a scan in single precision. The fourth value
    is the greatest ‖scale · code‖.
    """
    parts = [_quantize(vectors[start : start + TEXTS_AT_ONCE]) for start in range(0, len(vectors), TEXTS_AT_ONCE)]
    codes, scales, errors, lengths = (np.concatenate(part) for part in zip(*parts, strict=True))
    return codes, scales, errors, float(lengths.max(initial=0))


def _quantize(vectors: np.ndarray) -> tuple[np.ndarray, ...]:
    exact = vectors.astype(np.float64)
    scales = (np.abs(exact).max(axis=1, initial=0) / CODE_MAX).astype(np.float32)
    divisor = np.where(scales > 0, scales, 1).astype(np.float64)[:, None]
    codes = np.clip(np.rint(exact / divisor), -CODE_MAX, CODE_MAX).astype(np.int8)
    approximation = scales.astype(np.float64)[:, None] * codes
    distance = np.linalg.norm(exact - approximation, axis=1)
    bounds = distance * (1 + ROUNDING) + np.linalg.norm(exact, axis=1) * ROUNDING
    errors = np.nextafter(bounds.astype(np.float32), np.float32(np.inf))
    return codes, scales, errors, np.linalg.norm(approximation, axis=1)
