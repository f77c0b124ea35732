"""Embed: every distinct cell value of a dataset, and its description, as a vector (docs/method.md section 2)."""

import hashlib
import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from rebase.cells import worth_embedding
from rebase.encoder import Encoder, OpenEncoder
from rebase.parameters import EmbedParameters
from rebase.shards import Shard, ShardPlan, Shards, metadata_of, with_metadata

_VERSION = "1"  # Part of every fingerprint: a change of which cells are embedded, or how, must raise it.

#: The row number under which a dataset's description stands among its cells.
DESCRIPTION = -1


def plan_embed(rows: Shards, cards: pd.DataFrame, encoder: Encoder, parameters: EmbedParameters) -> ShardPlan:
    """Plan one shard of vectors a dataset; only new or changed datasets, or another encoder, cost anything.

    A shard has one line a distinct text: ``digest`` (16 bytes of its SHA-256), ``vector`` (float32 list), and the
    cells it stands in as two lists of equal length, ``rows`` (positions in the dataset's shard of rows, -1 for the
    description) and ``columns`` (positions in the list of column names in the metadata).
    """
    descriptions = dict(zip(cards["dataset"], cards["description"], strict=True))

    def shard(name: str) -> Shard:
        fingerprint = hashlib.sha256(f"{_VERSION}|{encoder.identity}|{rows.fingerprints[name]}".encode()).hexdigest()
        return Shard(
            name,
            fingerprint,
            lambda opened: _embed(rows[name], descriptions[name], encoder.identity, opened, parameters),
        )

    return ShardPlan([shard(name) for name in rows], open=encoder.open)


def summarise_embed(vectors: Shards) -> dict[str, Any]:
    """The stage's summary: of all cells, how many are embedded, and as how many distinct texts."""
    shards = [metadata_of(vectors[name]) for name in vectors]
    skipped = sum(shard["skipped"] for shard in shards)
    embedded = sum(shard["cells"] for shard in shards)
    return {
        "stage": "embed",
        "in": embedded + skipped,
        "kept": embedded,
        "refused": {"not_text": skipped} if skipped else {},
        "distinct_texts": sum(shard["texts"] for shard in shards),
    }


def _embed(
    table: pa.Table, description: str, identity: str, encoder: OpenEncoder, parameters: EmbedParameters
) -> pa.Table:
    """Embed one dataset's distinct texts."""
    cells: dict[str, list[tuple[int, int]]] = {description: [(DESCRIPTION, 0)]}
    columns: dict[str, int] = {"": 0}
    skipped = 0
    for position, row in enumerate(table["row"].to_pylist()):
        for column, text in json.loads(row).items():
            if worth_embedding(text):
                cells.setdefault(text, []).append((position, columns.setdefault(column, len(columns))))
            else:
                skipped += 1
    texts = list(cells)
    vectors = encoder.encode(texts, parameters.batch_size)
    result = pa.table(
        {
            "digest": pa.array([hashlib.sha256(text.encode()).digest()[:16] for text in texts], pa.binary(16)),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
            "rows": pa.array([[row for row, _ in cells[text]] for text in texts], pa.list_(pa.int32())),
            "columns": pa.array([[column for _, column in cells[text]] for text in texts], pa.list_(pa.int32())),
        }
    )
    embedded = sum(map(len, cells.values())) - 1  # The description is no cell.
    metadata = {
        "encoder": identity,
        "dimension": int(vectors.shape[1]),
        "columns": list(columns),
        "dataset_rows": table.num_rows,
        "cells": embedded,
        "texts": len(texts),
        "skipped": skipped,
    }
    return with_metadata(result, metadata)


def vectors_of(table: pa.Table) -> np.ndarray:
    """The vectors of a shard as float32 ``[texts, dimension]``."""
    column = table["vector"].combine_chunks()
    values: np.ndarray = column.flatten().to_numpy()
    return values.reshape(len(column), -1)
