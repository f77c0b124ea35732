"""Read data files: a bounded systematic sample of their rows, or all of them."""

import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import pyarrow as pa

from rebase.datastore.sampling import systematic_sample
from rebase.datastore.sources.errors import NoDataFilesError, TooSlowError, check_time
from rebase.datastore.sources.files import (
    DataFiles,
    data_format,
    extracted_files,
    files_of_format,
    is_archive,
    is_data_file,
    is_note,
    leaves_archive,
    path_in_archive,
    splits_by_name,
)
from rebase.datastore.sources.parquet import sample_parquet, schema_label_names
from rebase.datastore.sources.rows import Row, RowSample, rows_of
from rebase.datastore.sources.text_files import csv_rows, json_row, json_texts, open_text, text_rows
from rebase.errors import RebaseError

_BATCH_ROWS = 1000
#: The library's readers whose formats are read here.
_MODULES = ("csv", "json", "text", "xml", "arrow")
_OF_TAR = ("__key__", "__url__")


def sample_rows(files: DataFiles, label_names: dict[str, list[str]], max_rows: int) -> RowSample:
    """Sample data files of one format. CSV and JSON are read as text, so no row depends on the types of others.

    ``label_names`` are the names of class labels that the card declares, by flat column.
    """
    unusable: list[tuple[str, Exception]] = [(path, FileNotFoundError(why)) for path, why in files.unusable.items()]
    sample = RowSample(label_names=label_names, unread=unusable)
    if files.module == "parquet":
        sample_parquet(files, max_rows, sample)
        return sample
    items, sample.total = systematic_sample(_items(files, sample), max_rows)
    sample.rows = ((position, json_row(item) if isinstance(item, str) else item) for position, item in items)
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
    if len(rows) < sample.total:
        raise RebaseError(f"only {len(rows)} of {sample.total} rows fit into memory")
    columns = dict.fromkeys(chain.from_iterable(rows))
    return [columns | row for row in rows]


def read_file(path: Path) -> list[dict[str, Any]]:
    """All rows of one data file.

    Raises RebaseError if its format is not supported, if a row cannot be read, or if a letter cannot be decoded: unlike
    in a datastore, each answer counts.
    """
    module, paths = data_format([str(path)])
    if not paths:
        raise RebaseError(f"{path}: cannot read {path.suffix!r}; use .jsonl, .json, .csv, .tsv or .parquet")
    return all_rows(sample_rows(DataFiles(module, paths, decoding="strict"), {}, sys.maxsize))


def _items(files: DataFiles, sample: RowSample) -> Iterator[Any]:
    """The rows of all files, or their JSON text."""
    if files.module not in _MODULES:
        yield from _recorded(files.paths[0], _library_rows(files, sample), sample)
        return
    for path in files.paths:
        yield from _recorded(path, _file_items(path, files, sample), sample)


def _recorded(path: str, items: Iterator[Any], sample: RowSample) -> Iterator[Any]:
    """The rows of a file. If it fails, that is recorded, and its rows up to there count."""
    try:
        for item in items:
            check_time()
            yield item
    except TooSlowError:
        raise
    except Exception as error:  # Every format has its own errors.
        sample.unread.append((path, error))


def _file_items(path: str, files: DataFiles, sample: RowSample) -> Iterator[Any]:
    """The rows of a file, or of the files of an archive."""
    if not is_archive(path):
        [name] = extracted_files(path, files.token)
        yield from _stream_items(name, files, sample)
        return
    for part, name in _files_of_archive(path, files, sample).items():
        yield from _recorded(part, _stream_items(name, files, sample), sample)


def _stream_items(name: str, files: DataFiles, sample: RowSample) -> Iterator[Any]:
    """The rows of a file, which may be compressed or in an archive, by the library's name of it."""
    from datasets import DownloadConfig
    from datasets.utils.file_utils import xopen

    options = files.options
    with xopen(name, "rb", download_config=DownloadConfig(token=files.token)) as stream:
        if files.module == "arrow":
            yield from _arrow_rows(stream, sample)
            return
        lines = open_text(stream, options.get("encoding"), files.decoding)
        if files.module == "csv":
            yield from csv_rows(lines, name, options)
        elif files.module == "json":
            yield from json_texts(lines, name, options.get("field"))
        else:
            yield from text_rows(lines, files.module, options)


def _files_of_archive(path: str, files: DataFiles, sample: RowSample) -> dict[str, str]:
    """The library's names of the files of the format and the split in a ZIP archive, by path, without notes.

    Data files of other formats or of no split, and archives, are unread.
    """
    names = {path_in_archive(name): name for name in extracted_files(path, files.token)}
    data = [inner for inner in names if not is_note(inner)]
    usable = [inner for inner in data if not leaves_archive(inner)]
    splits = splits_by_name(usable) if files.has_archived_splits else {files.split: usable}
    chosen = files_of_format(files.module, splits.pop(files.split, []))
    for other in filter(is_data_file, sorted(set(data).difference(chosen, *splits.values()))):
        why = NoDataFilesError(f"not read with the others, which are {files.module}")
        sample.unread.append((f"{path}/{other}", why))
    if not (chosen or splits):
        raise NoDataFilesError(f"no {files.module} files in the archive")
    return {f"{path}/{inner}": names[inner] for inner in chosen}


def _arrow_rows(stream: IO[bytes], sample: RowSample) -> Iterator[Row]:
    """The rows of an Arrow file, which may be a stream or a file with a footer."""
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
        yield from rows_of(pa.Table.from_batches([batch]))


def _library_rows(files: DataFiles, sample: RowSample) -> Iterator[Row]:
    """The undecoded rows of formats other than those above, streamed by the library."""
    from datasets.data_files import DataFilesDict, DataFilesList
    from datasets.load import import_main_class
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    builder_class = import_main_class(_PACKAGED_DATASETS_MODULES[files.module][0])
    parts = (_files_of_archive(path, files, sample).values() if is_archive(path) else [path] for path in files.paths)
    paths = list(chain.from_iterable(parts))
    data_files = DataFilesDict(train=DataFilesList(paths, [()] * len(paths)))
    with TemporaryDirectory() as cache:  # The library writes a lock file even for a stream.
        builder = builder_class(cache_dir=cache, data_files=data_files, hash="none", token=files.token)
        for name, value in files.options.items():
            if hasattr(builder.config, name):
                setattr(builder.config, name, value)
        for table in builder.as_streaming_dataset(split="train").with_format("arrow").iter(batch_size=_BATCH_ROWS):
            # Of a TAR archive the names of files and a path of this machine are no content.
            yield from rows_of(table.drop_columns([name for name in _OF_TAR if name in table.column_names]))
