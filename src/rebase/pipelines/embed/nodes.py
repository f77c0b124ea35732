"""Embed: every distinct cell value of a dataset, and its description, as a vector (docs/method.md section 2)."""

import json
import time
from array import array
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from rebase.datastore.cells import worth_embedding
from rebase.datastore.encoder import Encoder, OpenEncoder
from rebase.datastore.shards import Shard, ShardPlan, Shards, fingerprint_of, with_metadata
from rebase.datastore.vectors import DESCRIPTION
from rebase.parameters import EmbedParameters
from rebase.records import summarize_stage

_VERSION = "3"  # Part of every fingerprint: raise it with every change of which cells are embedded, or how.

#: Rows that are parsed from JSON at once.
_BATCH_ROWS = 1_000


def plan_embed(rows: Shards, cards: pd.DataFrame, encoder: Encoder, parameters: EmbedParameters) -> ShardPlan:
    """Plan one shard of vectors a dataset; only datasets that are new or changed are embedded.

    A shard has one line a distinct text: its ``vector`` (float16 list), and the cells that hold it as two lists of
    equal length, ``rows`` (positions in the dataset's shard of rows, -1 for the description) and ``columns`` (positions
    in the list of column names in the metadata).
    """
    descriptions = dict(zip(cards["dataset"], cards["description"], strict=True))
    shards = [
        Shard(
            name,
            # `batch_tokens` changes no vector, so it is left out.
            fingerprint_of(_VERSION, encoder.identity, parameters.cells, rows.fingerprints[name]),
            partial(_embed, rows.reader(name), descriptions[name], encoder.identity, parameters),
        )
        for name in rows
    ]
    return ShardPlan(shards, opener=encoder.open)


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


def _embed(
    read: Callable[[], pa.Table], description: str, identity: str, parameters: EmbedParameters, encoder: OpenEncoder
) -> pa.Table:
    """Embed the distinct texts of one dataset, whose rows ``read`` loads."""
    table = read()
    cells = _Cells(description)
    skipped = 0
    for batch in table.select(["row"]).to_batches(max_chunksize=_BATCH_ROWS):
        for row in batch["row"].to_pylist():
            for column, text in json.loads(row).items():
                if parameters.cells == "all" or worth_embedding(text):
                    cells.add(text, column)
                else:
                    skipped += 1
            cells.row += 1
    vectors, truncated = encoder.encode(list(cells.texts), parameters.batch_tokens)
    rows, columns = cells.by_text()
    # Half precision: the cosine to the float32 vector stays above 0.9999998; the length, and with it a dot product, is
    # off by less than 0.0003 (half of float16's step).
    halves = pa.array(vectors.astype(np.float16).reshape(-1))
    result = pa.table(
        {
            "vector": pa.FixedSizeListArray.from_arrays(halves, encoder.dimension),
            "rows": rows,
            "columns": columns,
        }
    )
    metadata = {
        "encoder": identity,
        "dimension": encoder.dimension,
        "dtype": encoder.dtype,
        "columns": list(cells.columns),
        "dataset_rows": table.num_rows,
        "cells": len(cells.text_of) - 1,  # The description is no cell.
        "texts": len(cells.texts),
        "skipped": skipped,
        "truncated": int(truncated.sum()),
    }
    return with_metadata(result, metadata)


class _Cells:
    """The distinct texts of a dataset, in order of appearance, and the cells that hold them; 12 bytes a cell."""

    def __init__(self, description: str) -> None:
        self.texts = {description: 0}
        self.columns = {"": 0}
        self.row = 0  # the row that cells are added to
        self.text_of, self._rows, self._columns = array("i", [0]), array("i", [DESCRIPTION]), array("i", [0])

    def add(self, text: str, column: str) -> None:
        """Add a cell of the row."""
        self.text_of.append(self.texts.setdefault(text, len(self.texts)))
        self._rows.append(self.row)
        self._columns.append(self.columns.setdefault(column, len(self.columns)))

    def by_text(self) -> tuple[pa.ListArray, pa.ListArray]:
        """The rows and the columns of each text's cells."""
        text_of = np.asarray(self.text_of)
        order = np.argsort(text_of, kind="stable")
        ends = np.cumsum([0, *np.bincount(text_of)], dtype=np.int32)
        rows, columns = (np.asarray(numbers)[order] for numbers in (self._rows, self._columns))
        return pa.ListArray.from_arrays(ends, rows), pa.ListArray.from_arrays(ends, columns)
