"""Embed: every distinct cell value of a dataset, and its description, as a vector (docs/method.md section 2)."""

import json
import time
from array import array
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from rebase.datastore.cells import worth_embedding
from rebase.datastore.encoder import Encoder, OpenEncoder
from rebase.datastore.shards import Shard, ShardPlan, Shards, fingerprint_of, metadata_of, with_metadata
from rebase.datastore.vectors import DESCRIPTION
from rebase.parameters import EmbedParameters
from rebase.records import summarize_stage

_VERSION = "6"  # Part of every fingerprint: raise it with every change of which cells are embedded, or how.


def plan_embed(rows: Shards, encoder: Encoder, parameters: EmbedParameters) -> ShardPlan:
    """Plan one shard of vectors a dataset; only datasets that are new or changed are embedded.

    A shard has one line a distinct text: its ``vector`` (float16 list), and the cells that hold it as two lists of
    equal length, ``rows`` (positions in the dataset's shard of rows, -1 for the description) and ``columns`` (positions
    in the list of column names in the metadata).
    """
    identity = encoder.identity  # once: it looks at the files of a folder
    shards = [
        Shard(
            name,
            # `batch_tokens` changes no vector, so it is left out.
            fingerprint_of(_VERSION, identity, parameters.cells, rows.fingerprints[name]),
            partial(_embed, rows.reader(name), identity, parameters),
        )
        for name in rows
    ]
    return ShardPlan(shards, opener=encoder.open, made_of=rows.digest)


def summarize_embed(vectors: Shards) -> dict[str, Any]:
    """The stage's summary: how many cells are embedded, as how many distinct texts, and how many were truncated."""
    started = time.monotonic()
    shards = list(vectors.metadata().values())
    return summarize_stage(
        "embed",
        kept=sum(shard["cells"] for shard in shards),
        rejected={"not_text": sum(shard["skipped"] for shard in shards)},
        seconds=vectors.seconds + time.monotonic() - started,
        distinct_texts=sum(shard["texts"] for shard in shards),
        truncated=sum(shard["truncated"] for shard in shards),
        # Shards of earlier versions do not record it.
        dtype="+".join(sorted({shard["dtype"] for shard in shards if "dtype" in shard})) or "not recorded",
    )


def _embed(read: Callable[[], pa.Table], identity: str, parameters: EmbedParameters, encoder: OpenEncoder) -> pa.Table:
    """Embed the distinct texts of one dataset, whose rows and card ``read`` loads."""
    table = read()
    description = metadata_of(table)["card"]["description"]
    texts, columns, skipped = {description: 0}, {"": 0}, 0
    cells = array("i", [0, DESCRIPTION, 0])  # Of each cell its text, its row and its column: 12 bytes.
    for row, line in enumerate(table["row"]):
        for column, text in json.loads(line.as_py()).items():
            if parameters.cells == "all" or worth_embedding(text):
                cells.extend((texts.setdefault(text, len(texts)), row, columns.setdefault(column, len(columns))))
            else:
                skipped += 1
    vectors, truncated = encoder.encode(list(texts), parameters.batch_tokens)
    text_of_cell, row_of_cell, column_of_cell = np.asarray(cells).reshape(-1, 3).T
    order = np.argsort(text_of_cell, kind="stable")
    ends = np.cumsum([0, *np.bincount(text_of_cell)], dtype=np.int32)
    # Half precision: the cosine to the float32 vector stays above 0.9999998; the length, and with it a dot product, is
    # off by less than 0.0003 (half of float16's step).
    halves = pa.array(vectors.astype(np.float16).reshape(-1))
    result = pa.table(
        {
            "vector": pa.FixedSizeListArray.from_arrays(halves, encoder.dimension),
            "rows": pa.ListArray.from_arrays(ends, row_of_cell[order]),
            "columns": pa.ListArray.from_arrays(ends, column_of_cell[order]),
        }
    )
    metadata = {
        "encoder": identity,
        "dimension": encoder.dimension,
        "dtype": encoder.dtype,
        "columns": list(columns),
        "dataset_rows": table.num_rows,
        "cells": len(order) - 1,  # The description is no cell.
        "texts": len(texts),
        "skipped": skipped,
        "truncated": int(truncated.sum()),
    }
    return with_metadata(result, metadata)
