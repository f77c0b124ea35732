"""Rows of tables as Python objects."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pyarrow as pa

_SLICE_ROWS = 16  # Rows that are Python objects at once: cells may have many megabytes.

#: A row, or the reason why it could not be read.
Row = dict[str, Any] | str


#: The reason instead of a row that could not be split into columns.
MALFORMED = "malformed_row"


@dataclass
class RowSample:
    """A systematic sample of ``total`` rows.

    Attributes:
        rows: yields (position, row) once, in order, with the reason instead of a row that could not be read.
        label_names: the class names of label columns, by flat column.
        unread: the files that could not be read, wholly or from some row on, each with the error; complete when the
            rows were iterated.

    """

    total: int = 0
    rows: Iterable[tuple[int, Row]] = ()
    label_names: dict[str, list[str]] = field(default_factory=dict)
    unread: list[tuple[str, Exception]] = field(default_factory=list)


def rows_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a table as dictionaries. Columns of mixed types, which the library stores as JSON, are decoded.

    Numbers of single precision have the digits that they were written with. Columns of the same name are renamed:
    ``a``, ``a.1``.
    """
    names = distinct(table.column_names)
    coded = ["arrow.json" in str(field.type) or "float" in str(field.type) for field in table.schema]
    for start in range(0, table.num_rows, _SLICE_ROWS):
        piece = table.slice(start, _SLICE_ROWS)
        columns = [
            [_decode(value, column.type) for value in _values(column)] if is_coded else _values(column)
            for column, is_coded in zip(piece.columns, coded, strict=True)
        ]
        for number in range(piece.num_rows):
            yield {name: column[number] for name, column in zip(names, columns, strict=True)}


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
        if isinstance(scalar, pa.TimestampScalar) and scalar.type.tz not in (None, "UTC"):  # It may not be known here.
            return _value(scalar.cast(pa.timestamp(scalar.type.unit, "UTC")))
        return scalar.cast(pa.string()).as_py()


def _decode(value: Any, kind: pa.DataType) -> Any:
    """Decode the JSON and the numbers of single or half precision in a value of a column that contains them."""
    if value is None:
        return None
    if pa.types.is_float32(kind) or pa.types.is_float16(kind):
        return float(str(kind.to_pandas_dtype()(value)))  # 4.3, not 4.300000190734863
    if isinstance(kind, pa.JsonType):
        return json.loads(value)
    if pa.types.is_struct(kind):
        return {field.name: _decode(value[field.name], field.type) for field in kind.fields}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return [_decode(item, kind.value_type) for item in value]
    return value


def distinct(names: list[str]) -> list[str]:
    """The names, with numbers appended to repeated ones."""
    taken = set(names)
    numbers: defaultdict[str, Iterator[int]] = defaultdict(lambda: count(1))
    result: dict[str, None] = {}
    for name in names:
        new = name
        while new in result or (new != name and new in taken):
            new = f"{name}.{next(numbers[name])}"
        result[new] = None
    return list(result)
