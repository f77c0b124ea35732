"""Index: segments of codes of all vectors, and their Annoy indexes (docs/method.md section 3)."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rebase.datastore.annoy_index import annoy_index_name, write_annoy_index
from rebase.datastore.segments import Segment, quantize
from rebase.datastore.shards import Shard, ShardPlan, Shards, fingerprint_of, metadata_of
from rebase.datastore.vectors import DESCRIPTION, vectors_of
from rebase.errors import RebaseError
from rebase.parameters import IndexParameters
from rebase.records import summarize_stage

_VERSION = "1"  # Part of every fingerprint: raise it with every change of what a segment holds.
#: Datasets a segment, on average: a new dataset rebuilds one segment, a search opens all of them.
SEGMENT_DATASETS = 64


def plan_index(vectors: Shards) -> ShardPlan:
    """Plan the segments: runs of about ``SEGMENT_DATASETS`` datasets in name order.

    The end of a run depends on the dataset's own name alone: adding or removing a dataset changes one segment. Raises
    RebaseError if there are no vectors.
    """
    if not vectors:
        raise RebaseError("index: there are no vectors. Run the embed pipeline over at least one dataset.")
    shards = []
    for run in _runs(vectors):
        fingerprint = fingerprint_of(_VERSION, *(f"{name}|{vectors.fingerprints[name]}" for name in run))
        shards.append(Shard(run[0], fingerprint, partial(_build_segment, {name: vectors.reader(name) for name in run})))
    return ShardPlan(shards, made_of=vectors.digest)


def plan_annoy_index(index: Shards, vectors: Shards, parameters: IndexParameters) -> ShardPlan:
    """Plan an Annoy index for each segment; none if ``trees`` is 0."""
    trees, seed = parameters.trees, parameters.seed
    shards = []
    for run in _runs(vectors) if trees else ():
        segment = run[0]
        fingerprint = fingerprint_of(index.fingerprints[segment], trees, seed)
        readers = list(map(vectors.reader, run))
        build = partial(_build_annoy_index, index.reader(segment), readers, trees, seed)
        shards.append(Shard(annoy_index_name(index, segment), fingerprint, build))
    return ShardPlan(shards)


def summarize_index(index: Shards, annoy_index: Shards, parameters: IndexParameters) -> dict[str, Any]:
    """The stage's summary. Raises RebaseError if segments have different encoders."""
    started = time.monotonic()
    # Counted where the segments are: they may not fit into this process.
    counts = dict(index.map(dict.fromkeys(index, _count)))
    encoders, *numbers = zip(*counts.values(), strict=True)
    encoder = _only_encoder(dict(zip(counts, encoders, strict=True)))
    datasets, rows, texts, cells = map(sum, numbers)
    return summarize_stage(
        "index",
        kept=rows,
        rejected={},
        seconds=index.seconds + annoy_index.seconds + time.monotonic() - started,
        datasets=datasets,
        segments=len(index),
        texts=texts,
        cells=cells,
        trees=parameters.trees if annoy_index else 0,
        encoder=encoder,
    )


def build_segment(tables: Mapping[str, pa.Table]) -> Segment:
    """Build the segment of the datasets' shards of vectors, in the order of ``tables``.

    Raises RebaseError if they have different encoders.
    """
    metadata = {name: metadata_of(table) for name, table in tables.items()}
    dataset_rows = [dataset["dataset_rows"] for dataset in metadata.values()]
    vectors = [vectors_of(table) for table in tables.values()]
    *coded, reaches = zip(*map(quantize, vectors), strict=True)
    codes, scales, errors = map(np.concatenate, coded)
    text_start = np.cumsum([0, *map(len, vectors)])
    described, texts, columns, lengths = zip(*map(_cells, tables.values(), dataset_rows), strict=True)
    return Segment(
        codes=codes,
        scales=scales,
        errors=errors,
        reach=np.array([max(reaches)]),
        descriptions=np.stack([part[text] for part, text in zip(vectors, described, strict=True)]),
        cell_text=np.concatenate([part + first for part, first in zip(texts, text_start[:-1], strict=True)]).astype(
            np.int32
        ),
        cell_column=np.concatenate(columns).astype(np.int32),
        row_start=np.cumsum(np.concatenate([[0], *lengths])).astype(np.int64),
        dataset_start=np.cumsum([0, *dataset_rows]).astype(np.int64),
        text_start=text_start.astype(np.int64),
        columns={name: dataset["columns"] for name, dataset in metadata.items()},
        encoder=_only_encoder({name: dataset["encoder"] for name, dataset in metadata.items()}),
    )


def _runs(vectors: Shards) -> Iterator[list[str]]:
    """The datasets' names in order; a run ends after a name if the name's hash is a multiple of the length of a run."""
    run: list[str] = []
    for name in vectors:
        run.append(name)
        if int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % SEGMENT_DATASETS == 0:
            yield run
            run = []
    if run:
        yield run


def _build_segment(readers: Mapping[str, Callable[[], pa.Table]], _: None) -> pa.Table:
    return build_segment({name: read() for name, read in readers.items()}).to_table()


def _build_annoy_index(
    read: Callable[[], pa.Table], readers: list[Callable[[], pa.Table]], trees: int, seed: int, _: None
) -> Callable[[Path], None]:
    vectors = (vectors_of(reader()) for reader in readers)
    return partial(write_annoy_index, Segment.from_table(read()), vectors, trees, seed)


def _cells(table: pa.Table, rows: int) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """The number of a dataset's description, and its cells sorted by row: their texts, columns, and counts by row."""
    rows_of_text, columns = table["rows"].combine_chunks(), table["columns"].combine_chunks()
    row = rows_of_text.flatten().to_numpy()
    text = np.repeat(np.arange(len(rows_of_text)), rows_of_text.value_lengths().to_numpy())
    described = row == DESCRIPTION
    order = np.argsort(row, kind="stable")[described.sum() :]
    column = columns.flatten().to_numpy()
    return int(text[described][0]), text[order], column[order], np.bincount(row[order], minlength=rows)


def _count(table: pa.Table) -> tuple[str, int, int, int, int]:
    """A segment's encoder, datasets, rows, texts and cells."""
    segment = Segment.from_table(table)
    return segment.encoder, len(segment.datasets), segment.rows, len(segment.codes), len(segment.cell_text)


def _only_encoder(encoders: Mapping[str, str]) -> str:
    """The encoder of all parts, by name. Raises RebaseError if there are several."""
    by_encoder = {encoder: name for name, encoder in encoders.items()}
    if len(by_encoder) > 1:
        listed = ", ".join(f"{encoder!r} those of {name}" for encoder, name in by_encoder.items())
        raise RebaseError(
            f"index: several encoders made the vectors: {listed}. Run again: kedro run --pipelines=embed,index."
        )
    return next(iter(by_encoder))
