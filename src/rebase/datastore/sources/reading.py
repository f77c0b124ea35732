"""Read rows of files: a bounded systematic sample, without reading more than necessary."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from glob import escape
from itertools import accumulate, chain, count
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rebase.datastore.cells import is_media
from rebase.datastore.sampling import systematic_positions, systematic_sample
from rebase.datastore.sources.errors import causes
from rebase.errors import RebaseError

if TYPE_CHECKING:
    from datasets import IterableDataset

#: The formats that are read, by file suffix, with their names in the library.
FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv"}
#: Row groups with more uncompressed bytes are not read: a small file can expand to any size.
MAX_GROUP_BYTES = 2**30
_BATCH_ROWS = 1000
_BATCH_VALUES = 2**22
_SLICE_ROWS = 16  # Rows that are Python objects at once: cells may have many megabytes.

_TOO_MANY_FIELDS = re.compile(r"Expected \d+ fields in line (\d+), saw \d+")
#: A local path, or a function that opens a remote file.
ParquetFile = str | Callable[[], IO[bytes]]


#: Consecutive rows of a config, undecoded, and the class names of their label columns.
RawBatch = tuple[pa.Table, dict[str, list[str]]]


@dataclass(frozen=True)
class RowSample:
    """A systematic sample of ``total`` rows.

    ``rows`` yields (position, row) once, in order, with the reason instead of a row that could not be read.
    ``malformed`` rows of the total, at unknown positions, could not be split into columns.
    """

    total: int
    rows: Iterable[tuple[int, dict[str, Any] | str]]
    label_names: dict[str, list[str]] = field(default_factory=dict)
    malformed: int = 0


def sample_files(files: list[Path], features: Any, max_rows: int) -> RowSample:
    """Sample local files of one format. ``features`` are those that the card declares, or None."""
    files = _with_content(files)
    suffix = files[0].suffix.lower()
    if suffix == ".parquet":
        return sample_parquet([str(file) for file in files], label_names(features), max_rows)
    try:
        return sample_stream(read_files(files, features), max_rows)
    except Exception as error:
        if FORMATS.get(suffix) == "csv" and _is_ragged(error):
            ragged: list[list[str]] = []
            options = {"engine": "python", "on_bad_lines": ragged.append}
            sample = sample_stream(read_files(files, features, options), max_rows)
            return RowSample(sample.total + len(ragged), sample.rows, sample.label_names, len(ragged))
        if suffix == ".jsonl" and (lines := _sample_lines(files, label_names(features), max_rows)):
            return lines
        raise


def sample_stream(batches: Iterable[RawBatch], max_rows: int) -> RowSample:
    """Sample a stream of unknown length in one pass (see ``systematic_sample``)."""
    names: dict[str, list[str]] = {}

    def tables() -> Iterator[pa.Table]:
        for table, batch_names in batches:
            names.update(batch_names)
            yield table

    pieces, positions, total = systematic_sample(tables(), max_rows)
    rows = chain.from_iterable(map(rows_of, pieces))
    return RowSample(total, zip(positions.tolist(), rows, strict=True), names)


def sample_parquet(files: list[ParquetFile], names: dict[str, list[str]], max_rows: int) -> RowSample:
    """Sample the ``systematic_positions`` of Parquet files, whose footers have the number of rows.

    Only row groups with a chosen row are read, without their binary columns.
    """
    footers = []
    for file in files:
        with _open(file) as parquet:
            footers.append(parquet.metadata)
            names = _parquet_label_names(parquet.schema_arrow) | names
    total = sum(footer.num_rows for footer in footers)
    return RowSample(total, _parquet_rows(files, footers, systematic_positions(total, max_rows)), names)


def read_files(files: list[Path], features: Any = None, options: dict[str, Any] | None = None) -> Iterator[RawBatch]:
    """Stream data files of one format, by their suffix. Raises RebaseError if the format is not supported.

    Invalid UTF-8 in text files becomes U+FFFD. ``options`` are the library's options of the format.
    """
    from datasets import load_dataset

    files = _with_content(files)
    suffix = files[0].suffix.lower()
    if suffix not in FORMATS:
        raise RebaseError(f"{files[0]}: cannot read {suffix!r}; use one of {', '.join(FORMATS)}")
    options = dict(options or {}) | ({} if suffix == ".parquet" else {"encoding_errors": "replace"})
    options |= {"sep": "\t"} if suffix == ".tsv" else {}
    names = [escape(str(file)) for file in files]  # The library reads them as patterns.
    return batches_of(
        load_dataset(FORMATS[suffix], data_files=names, split="train", streaming=True, **options), features
    )


def batches_of(stream: "IterableDataset", features: Any = None) -> Iterator[RawBatch]:
    """The undecoded rows of a stream of the ``datasets`` library."""
    names = label_names(stream.features) | label_names(features)
    for table in stream.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        yield table, names


def read_rows(batches: Iterable[RawBatch]) -> Iterator[dict[str, Any]]:
    """The rows of the batches as dictionaries."""
    for table, _ in batches:
        yield from rows_of(table)


def rows_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a table as dictionaries. Columns of mixed types, which the library stores as JSON, are decoded.

    Columns of the same name are renamed: ``a``, ``a.1``.
    """
    names = _distinct(table.column_names)
    mixed = ["arrow.json" in str(field.type) for field in table.schema]
    for start in range(0, table.num_rows, _SLICE_ROWS):
        piece = table.slice(start, _SLICE_ROWS)
        columns = [
            [_decode(value, column.type) for value in _values(column)] if is_json else _values(column)
            for column, is_json in zip(piece.columns, mixed, strict=True)
        ]
        for number in range(piece.num_rows):
            yield {name: column[number] for name, column in zip(names, columns, strict=True)}


def label_names(feature: Any, column: str = "") -> dict[str, list[str]]:
    """The class names of every label column of the library's features, also nested and listed, by flat column."""
    from datasets import ClassLabel

    if isinstance(feature, dict):
        prefix = f"{column}." if column else ""
        nested = (label_names(inner, f"{prefix}{name}") for name, inner in feature.items())
        return {name: names for part in nested for name, names in part.items()}
    if hasattr(feature, "feature"):
        return label_names(feature.feature, column)
    return {column: list(feature.names)} if isinstance(feature, ClassLabel) and feature.names else {}


def _is_ragged(error: Exception) -> bool:
    """Whether the fast CSV reader found a line with more fields than columns; the slow reader skips and reports it.

    The slow reader may misread such a third line as the names of an index, so that is not counted.
    """
    matches = [_TOO_MANY_FIELDS.search(str(cause)) for cause in causes(error)]
    return any(match and match[1] != "3" for match in matches)


def _sample_lines(files: list[Path], names: dict[str, list[str]], max_rows: int) -> RowSample | None:
    """Sample JSON Lines with broken lines, which the library rejects as a whole. None if all lines are broken."""

    def lines() -> Iterator[bytes]:
        for file in files:
            with file.open("rb") as stream:
                yield from (line for line in stream if not line.isspace())

    total = sum(1 for _ in lines())
    chosen = set(systematic_positions(total, max_rows).tolist())
    rows = [(position, _parse(line)) for position, line in enumerate(lines()) if position in chosen]
    return RowSample(total, rows, names) if any(isinstance(row, dict) for _, row in rows) else None


def _parse(line: bytes) -> dict[str, Any] | str:
    try:
        row = json.loads(line.decode("utf-8-sig", errors="replace"))
    except (ValueError, RecursionError):
        return "malformed_row"
    return row if isinstance(row, dict) else "malformed_row"


def _with_content(files: list[Path]) -> list[Path]:
    files = [file for file in files if file.stat().st_size]
    if not files:
        raise RebaseError("the data file is empty")
    return files


# -------------------------------------------------------------------------------------------------------- Parquet


def _open(file: ParquetFile, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Open a Parquet file.

    Text stays dictionary-encoded: a long text that the file stores once and repeats a million times needs memory once.
    The necessary ranges of a remote file are requested together.
    """
    texts = [] if footer is None else [leaf.path for leaf in _leaves(footer) if leaf.physical_type == "BYTE_ARRAY"]
    return pq.ParquetFile(
        file if isinstance(file, str) else file(),
        metadata=footer,
        read_dictionary=texts,
        pre_buffer=not isinstance(file, str),
    )


def _parquet_rows(
    files: list[ParquetFile], footers: list[pq.FileMetaData], chosen: np.ndarray
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The rows at the chosen positions."""
    start = 0
    for file, footer in zip(files, footers, strict=True):
        stop = start + footer.num_rows
        if np.searchsorted(chosen, start) < np.searchsorted(chosen, stop):
            with _open(file, footer) as parquet:
                yield from _file_rows(parquet, chosen, start)
        start = stop


def _file_rows(parquet: pq.ParquetFile, chosen: np.ndarray, start: int) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The chosen rows of one file, whose first row has the position ``start``."""
    footer = parquet.metadata
    wanted = [field.name for field in parquet.schema_arrow if _holds_text(field.type)]
    names = set(wanted)
    columns = None if len(wanted) == len(parquet.schema_arrow) else wanted
    leaves = [number for number, leaf in enumerate(_leaves(footer)) if _within(leaf.path, names)]
    for group in range(footer.num_row_groups):
        stop = start + footer.row_group(group).num_rows
        positions = chosen[np.searchsorted(chosen, start) : np.searchsorted(chosen, stop)]
        if not len(positions):
            pass
        elif not leaves:  # Only media: rows without text, which still count.
            yield from ((position, {}) for position in positions.tolist())
        elif _unpacked_bytes(footer, group, leaves) > MAX_GROUP_BYTES:
            yield from ((position, "too_large") for position in positions.tolist())
        else:
            size = max(1, _BATCH_VALUES // len(leaves))
            batches = parquet.iter_batches(min(size, stop - start), row_groups=[group], columns=columns)
            tables = (pa.Table.from_batches([batch]) for batch in batches)
            yield from zip(positions.tolist(), _rows_at(tables, positions - start), strict=True)
        start = stop


def _rows_at(tables: Iterator[pa.Table], offsets: np.ndarray) -> Iterator[dict[str, Any]]:
    """The rows at the offsets into consecutive tables."""
    first = 0
    for table in tables:
        here = offsets[(offsets >= first) & (offsets < first + table.num_rows)] - first
        first += table.num_rows
        if len(here):
            yield from rows_of(table.take(here))
        if first > offsets[-1]:
            return


def _unpacked_bytes(footer: pq.FileMetaData, group: int, leaves: list[int]) -> int:
    """The most memory that the columns of a row group need, by the footer."""
    total = 0
    for number in leaves:
        chunk = footer.row_group(group).column(number)
        # One row may have all values of a list column, and equal values are stored in a few bytes.
        listed = 8 * chunk.num_values if footer.schema.column(number).max_repetition_level else 0
        total += max(chunk.total_uncompressed_size, listed)
    return total


def _leaves(footer: pq.FileMetaData) -> list[Any]:
    return [footer.schema.column(number) for number in range(footer.num_columns)]


def _within(path: str, columns: set[str]) -> bool:
    """Whether a leaf such as ``a.list.element`` is part of one of the columns."""
    return any(part in columns for part in accumulate(path.split("."), "{}.{}".format))


def _holds_text(kind: pa.DataType) -> bool:
    """Whether a column of this type may contain text, not only bytes, media or nulls."""
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_text(kind.storage_type)
    if pa.types.is_struct(kind):
        fields = list(kind.fields)
        return not is_media({item.name for item in fields}) and any(_holds_text(item.type) for item in fields)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _holds_text(kind.value_type)
    if pa.types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return not any(is_it(kind) for is_it in (*binary, pa.types.is_null))


def _parquet_label_names(schema: pa.Schema) -> dict[str, list[str]]:
    """The class labels that the library wrote to a file's schema."""
    from datasets import Features

    try:
        return label_names(Features.from_arrow_schema(schema))
    except Exception:  # The library does not support all types of Arrow; none of those is a class label.
        return {}


# --------------------------------------------------------------------------------------------------------- values


def _values(column: pa.ChunkedArray) -> list[Any]:
    """The values as Python objects."""
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):  # Text that is not UTF-8, or a time outside Python's calendar.
        return [_value(scalar) for scalar in column]
    return values


def _value(scalar: pa.Scalar) -> Any:
    """One value; as text if Python has no such value."""
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        if isinstance(scalar, pa.DictionaryScalar):
            return _value(scalar.value)
        if isinstance(scalar, pa.StructScalar):
            return {name: _value(scalar[name]) for name in scalar}
        if isinstance(scalar, pa.ListScalar):
            return [_value(item) for item in scalar.values]
        if isinstance(scalar, pa.StringScalar):
            return scalar.as_buffer().to_pybytes().decode(errors="replace")
        return scalar.cast(pa.string()).as_py()


def _decode(value: Any, kind: pa.DataType) -> Any:
    """Decode the JSON in a value of a column that contains JSON."""
    if value is None:
        return None
    if isinstance(kind, pa.JsonType):
        return json.loads(value)
    if pa.types.is_struct(kind):
        return {field.name: _decode(value[field.name], field.type) for field in kind.fields}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [_decode(item, kind.value_type) for item in value]
    return value


def _distinct(names: list[str]) -> list[str]:
    """The names, with numbers appended to repeated ones."""
    if len(set(names)) == len(names):
        return names
    taken = set(names)
    seen: set[str] = set()
    result = []
    for name in names:
        if name in seen:
            name = next(other for number in count(1) if (other := f"{name}.{number}") not in taken)  # noqa: PLW2901
            taken.add(name)
        seen.add(name)
        result.append(name)
    return result
