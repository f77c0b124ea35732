"""Index: segments of codes over all vectors, and Annoy forests beside them (docs/method.md section 3)."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rebase.datastore.annoy_index import forest_name, plant_forest
from rebase.datastore.segments import Segment, quantize
from rebase.datastore.shards import Shard, ShardPlan, Shards, metadata_of
from rebase.datastore.vectors import DESCRIPTION, vectors_of
from rebase.errors import RebaseError
from rebase.parameters import IndexParameters

_VERSION = "1"  # Part of every fingerprint: a change of what a segment holds must raise it.


def plan_index(vectors: Shards, parameters: IndexParameters) -> ShardPlan:
    """Plan the segments, runs of about ``segment_datasets`` datasets in the order of their names.

    Where a run ends depends on the dataset's own name alone: a dataset that comes or goes changes one segment. Raises
    RebaseError where there is nothing to index.
    """
    if not vectors:
        raise RebaseError("index: there are no vectors. Run the embed pipeline over at least one dataset.")
    return ShardPlan([_plan_segment(vectors, run) for run in _runs(vectors, parameters.segment_datasets)])


def plan_forest(index: Shards, vectors: Shards, parameters: IndexParameters) -> ShardPlan:
    """Plan an Annoy forest for each segment; none where ``trees`` is 0."""
    if not parameters.trees:
        return ShardPlan([])
    runs = {run[0]: run for run in _runs(vectors, parameters.segment_datasets)}
    return ShardPlan(
        [
            Shard(
                forest_name(index, name),
                _digest(index.fingerprints[name], str(parameters.trees), str(parameters.seed)),
                partial(
                    _plant, index.later(name), list(map(vectors.later, runs[name])), parameters.trees, parameters.seed
                ),
            )
            for name in index
        ]
    )


def summarize_index(index: Shards, forest: Shards, parameters: IndexParameters) -> dict[str, Any]:
    """The stage's summary. Raises RebaseError where segments come from different encoders."""
    # Counted where the segments are: they may not fit into this process.
    counted = dict(index.map(dict.fromkeys(index, _count)))
    encoder = _only_encoder({name: counted[name][1] for name in index})
    rows, texts, cells, datasets = map(sum, zip(*(counts for counts, _ in counted.values()), strict=True))
    return {
        "stage": "index",
        "in": rows,
        "kept": rows,
        "rejected": {},
        "datasets": datasets,
        "segments": len(index),
        "texts": texts,
        "cells": cells,
        "trees": parameters.trees if forest else 0,
        "encoder": encoder,
    }


def build_segment(tables: Mapping[str, pa.Table]) -> Segment:
    """The segment of the datasets' shards of vectors, in the order of ``tables``.

    Raises RebaseError where they come from different encoders.
    """
    known = {name: metadata_of(table) for name, table in tables.items()}
    vectors = [vectors_of(table) for table in tables.values()]
    *coded, reaches = zip(*map(quantize, vectors), strict=True)
    codes, scales, errors = map(np.concatenate, coded)
    text_start = np.cumsum([0, *map(len, vectors)])
    cells = [
        _cells(table, metadata["dataset_rows"]) for table, metadata in zip(tables.values(), known.values(), strict=True)
    ]
    return Segment(
        codes=codes,
        scales=scales,
        errors=errors,
        reach=np.array([max(reaches)]),
        descriptions=np.stack([part[text] for part, (text, *_) in zip(vectors, cells, strict=True)]),
        cell_text=np.concatenate(
            [texts + start for (_, texts, _, _), start in zip(cells, text_start[:-1], strict=True)]
        ).astype(np.int32),
        cell_column=np.concatenate([columns for _, _, columns, _ in cells]).astype(np.int32),
        row_start=np.cumsum(np.concatenate([[0], *(lengths for _, _, _, lengths in cells)])).astype(np.int64),
        dataset_start=np.cumsum([0, *(metadata["dataset_rows"] for metadata in known.values())]).astype(np.int64),
        text_start=text_start.astype(np.int64),
        columns={name: metadata["columns"] for name, metadata in known.items()},
        encoder=_only_encoder({name: metadata["encoder"] for name, metadata in known.items()}),
    )


def _runs(vectors: Shards, length: int) -> Iterator[list[str]]:
    """The datasets' names in order, cut behind every name whose hash says so: on average every ``length``-th."""
    run: list[str] = []
    for name in vectors:
        run.append(name)
        if int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % length == 0:
            yield run
            run = []
    if run:
        yield run


def _plan_segment(vectors: Shards, run: list[str]) -> Shard:
    fingerprint = _digest(_VERSION, *(f"{name}|{vectors.fingerprints[name]}" for name in run))
    return Shard(run[0], fingerprint, partial(_build, {name: vectors.later(name) for name in run}))


def _build(readers: Mapping[str, Callable[[], pa.Table]], _: None) -> pa.Table:
    return build_segment({name: read() for name, read in readers.items()}).to_table()


def _plant(
    read: Callable[[], pa.Table], readers: list[Callable[[], pa.Table]], trees: int, seed: int, _: None
) -> Callable[[Path], None]:
    vectors = (vectors_of(reader()) for reader in readers)
    return plant_forest(Segment.from_table(read()), vectors, trees, seed)


def _cells(table: pa.Table, rows: int) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """A dataset's description (the number of its text), and its cells sorted by row: texts, columns, cells a row."""
    places, columns = table["rows"].combine_chunks(), table["columns"].combine_chunks()
    row = places.flatten().to_numpy()
    text = np.repeat(np.arange(len(places)), places.value_lengths().to_numpy())
    described = row == DESCRIPTION
    order = np.argsort(row, kind="stable")[described.sum() :]
    column = columns.flatten().to_numpy()
    return int(text[described][0]), text[order], column[order], np.bincount(row[order], minlength=rows)


def _count(table: pa.Table) -> tuple[tuple[int, int, int, int], str]:
    """A segment's rows, texts, cells and datasets, and its encoder."""
    segment = Segment.from_table(table)
    return (segment.rows, len(segment.codes), len(segment.cell_text), len(segment.datasets)), segment.encoder


def _only_encoder(encoders: Mapping[str, str]) -> str:
    """The encoder of all parts, by name. Raises RebaseError where there are several."""
    by_encoder = {encoder: name for name, encoder in encoders.items()}
    if len(by_encoder) > 1:
        listed = ", ".join(f"{encoder!r} those of {name}" for encoder, name in by_encoder.items())
        raise RebaseError(
            f"index: several encoders made the vectors: {listed}. Run again: kedro run --pipelines=embed,index."
        )
    return next(iter(by_encoder))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
