"""Read data files: a bounded systematic sample of their rows, or all of them."""

import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import pyarrow as pa

from rebase.datastore.sampling import systematic_sample
from rebase.datastore.sources.files import DataFiles, data_format
from rebase.datastore.sources.parquet import sample_parquet, schema_label_names
from rebase.datastore.sources.rows import RowSample, rows_of
from rebase.datastore.sources.text_files import csv_tables, json_rows, json_tables, text_tables
from rebase.errors import RebaseError

_BATCH_ROWS = 1000


def sample_rows(files: DataFiles, label_names: dict[str, list[str]], max_rows: int) -> RowSample:
    """Sample data files of one format. CSV and JSON are read as text, so no row depends on the types of others.

    ``label_names`` are the names of class labels that the card declares, by flat column.
    """
    sample = RowSample(
        label_names=label_names, unread=[(path, FileNotFoundError(why)) for path, why in files.unusable.items()]
    )
    if files.module == "parquet":
        sample_parquet(files, max_rows, sample)
        return sample
    pieces, positions, total = systematic_sample(_tables(files, sample), max_rows)
    to_rows = json_rows if files.module == "json" else rows_of
    rows = chain.from_iterable(map(to_rows, pieces))
    sample.total = total + sample.malformed
    sample.rows = zip(positions.tolist(), rows, strict=True)
    return sample


def all_rows(sample: RowSample) -> list[dict[str, Any]]:
    """The rows of a sample of all rows, each with all columns. Raises RebaseError if one could not be read."""
    rows = []
    for position, row in sample.rows:
        if isinstance(row, str):
            raise RebaseError(f"row {position}: {row}")
        rows.append(row)
    for path, error in sample.unread:
        raise RebaseError(f"{path}: {error}") from error
    if sample.malformed:
        raise RebaseError(f"{sample.malformed} rows are malformed; {sample.first_malformed}")
    if len(rows) < sample.total:
        raise RebaseError(f"only {len(rows)} of {sample.total} rows fit into memory")
    columns = dict.fromkeys(chain.from_iterable(rows))
    return [columns | row for row in rows]


def read_file(path: Path) -> list[dict[str, Any]]:
    """All rows of one data file. Raises RebaseError if its format is not supported, or if a row cannot be read."""
    module, paths = data_format([str(path)])
    if not paths:
        raise RebaseError(f"{path}: cannot read {path.suffix!r}; use .jsonl, .json, .csv, .tsv or .parquet")
    return all_rows(sample_rows(DataFiles(module, paths), {}, sys.maxsize))


def _tables(files: DataFiles, sample: RowSample) -> Iterator[pa.Table]:
    """The rows of all files. A file that fails is recorded, and its rows up to there count."""
    by_library = files.module not in ("csv", "json", "text", "xml", "arrow")
    for path in files.paths[:1] if by_library else files.paths:
        try:
            yield from _library_tables(files) if by_library else _tables_of_file(path, files, sample)
        except Exception as error:  # Every format has its own errors.
            sample.unread.append((path, error))


def _tables_of_file(path: str, files: DataFiles, sample: RowSample) -> Iterator[pa.Table]:
    from datasets import DownloadConfig
    from datasets.download import StreamingDownloadManager
    from datasets.utils.file_utils import xopen

    config = DownloadConfig(token=files.token)
    manager = StreamingDownloadManager(download_config=config)
    for inner in manager.iter_files(manager.extract(path)):  # One file, or those in a ZIP archive.
        with xopen(inner, "rb", download_config=config) as stream:
            if files.module == "csv":
                yield from csv_tables(stream, inner, files.options, sample)
            elif files.module == "json":
                yield from json_tables(stream, files.options)
            elif files.module == "arrow":
                yield from _arrow_tables(stream, sample)
            else:
                yield from text_tables(stream, files.module, files.options)


def _arrow_tables(stream: IO[bytes], sample: RowSample) -> Iterator[pa.Table]:
    """The batches of an Arrow file, which may be a stream or a file with a footer."""
    try:
        reader = pa.ipc.open_stream(stream)
        batches = iter(reader)
    except pa.ArrowInvalid:
        stream.seek(0)
        reader = pa.ipc.open_file(stream)
        batches = map(reader.get_batch, range(reader.num_record_batches))
    sample.label_names = schema_label_names(reader.schema) | sample.label_names
    for batch in batches:
        batch.validate(full=True)  # Offsets of a broken file may point anywhere.
        yield pa.Table.from_batches([batch])


def _library_tables(files: DataFiles) -> Iterator[pa.Table]:
    """The undecoded rows of formats other than those above, streamed by the library."""
    from datasets.data_files import DataFilesDict, DataFilesList
    from datasets.load import import_main_class
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    builder_class = import_main_class(_PACKAGED_DATASETS_MODULES[files.module][0])
    data_files = DataFilesDict(train=DataFilesList(files.paths, [()] * len(files.paths)))
    with TemporaryDirectory() as cache:  # The library writes a lock file even for a stream.
        builder = builder_class(cache_dir=cache, data_files=data_files, hash="none", token=files.token)
        for name, value in files.options.items():
            if hasattr(builder.config, name):
                setattr(builder.config, name, value)
        stream = builder.as_streaming_dataset(split="train").with_format("arrow")
        yield from stream.iter(batch_size=_BATCH_ROWS)
