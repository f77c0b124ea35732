"""Sample rows of Parquet files: only the row groups and columns that are needed are read."""

from collections.abc import Iterator
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rebase.datastore.cells import is_media
from rebase.datastore.sampling import systematic_positions
from rebase.datastore.sources.cards import label_names
from rebase.datastore.sources.errors import TooSlowError, check_time, failure_reason, with_retries
from rebase.datastore.sources.files import HUB_PREFIX, DataFiles
from rebase.datastore.sources.rows import Row, RowSample, rows_of

#: Row groups with more uncompressed bytes are not read: a small file can expand to any size.
MAX_GROUP_BYTES = 2**30
_BATCH_VALUES = 2**22


def sample_parquet(files: DataFiles, max_rows: int, sample: RowSample) -> None:
    """Sample the ``systematic_positions`` of Parquet files, whose footers have the number of rows.

    Only row groups with a chosen row are read, without their binary columns.
    """
    footers: dict[str, pq.FileMetaData] = {}
    for path in files.paths:
        check_time()
        try:
            with _open(path, files.token) as parquet:
                footers[path] = parquet.metadata
                sample.label_names = schema_label_names(parquet.schema_arrow) | sample.label_names
        except Exception as error:  # Any file may be broken, and the hub fails in many ways.
            sample.unread.append((path, error))
    sample.total = sum(footer.num_rows for footer in footers.values())
    sample.rows = _sampled_rows(footers, systematic_positions(sample.total, max_rows), files.token, sample)


def schema_label_names(schema: pa.Schema) -> dict[str, list[str]]:
    """The class labels that the library wrote to a file's schema."""
    from datasets import Features

    try:
        return label_names(Features.from_arrow_schema(schema))
    except Exception:  # The library does not support all types of Arrow; none of those is a class label.
        return {}


def _open(path: str, token: str | None, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Open a Parquet file.

    Text stays dictionary-encoded: a long text that the file stores once and repeats a million times needs memory once.
    The necessary ranges of a remote file are requested together, without read-ahead.
    """
    from huggingface_hub import HfFileSystem

    texts = [] if footer is None else [leaf.path for leaf in _leaves(footer) if leaf.physical_type == "BYTE_ARRAY"]
    is_remote = path.startswith(HUB_PREFIX)
    request = partial(HfFileSystem(token=token).open, path, cache_type="none")
    file = with_retries(request) if is_remote else path
    return pq.ParquetFile(file, metadata=footer, read_dictionary=texts, pre_buffer=is_remote)


def _sampled_rows(
    footers: dict[str, pq.FileMetaData], chosen: np.ndarray, token: str | None, sample: RowSample
) -> Iterator[tuple[int, Row]]:
    """The rows at the chosen positions. If a file fails, the reason instead of its further rows."""
    start = 0
    for path, footer in footers.items():
        stop = start + footer.num_rows
        positions = chosen[np.searchsorted(chosen, start) : np.searchsorted(chosen, stop)]
        done = 0
        try:
            if len(positions):
                with _open(path, token, footer) as parquet:
                    for item in _file_rows(parquet, positions, start):
                        check_time()
                        yield item
                        done += 1
        except TooSlowError:
            raise
        except Exception as error:  # As above.
            sample.unread.append((path, error))
            yield from ((position, failure_reason(error)) for position in positions[done:].tolist())
        start = stop


def _file_rows(parquet: pq.ParquetFile, chosen: np.ndarray, start: int) -> Iterator[tuple[int, Row]]:
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
