"""Index: one searchable whole over the vectors of all datasets (docs/method.md section 3)."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from rebase.errors import RebaseError
from rebase.parameters import IndexParameters
from rebase.pipelines.embed.nodes import DESCRIPTION, vectors_of
from rebase.search import Forest, VectorIndex, build_forest
from rebase.shards import Shards, metadata_of


def build_index(vectors: Shards) -> VectorIndex:
    """Merge the shards: texts that several datasets share are kept once.

    Raises RebaseError where there is nothing to index, or the shards come from different encoders.
    """
    merged = _Merge()
    for name in vectors:
        merged.add(name, vectors[name])
    if not merged.vectors:
        raise RebaseError("index: there are no vectors. Run the embed pipeline over at least one dataset.")
    return VectorIndex(
        vectors=np.concatenate(merged.vectors),
        descriptions=np.stack(merged.descriptions),
        cell_text=np.concatenate(merged.cell_text).astype(np.int32),
        cell_column=np.concatenate(merged.cell_column).astype(np.int32),
        row_start=np.concatenate([[0], np.cumsum(np.concatenate(merged.cells_per_row))]).astype(np.int64),
        dataset_start=np.cumsum([0, *merged.dataset_rows]).astype(np.int64),
        datasets=list(vectors),
        columns=list(merged.columns),
        encoder=merged.encoder,
        fingerprint=hashlib.sha256(repr(sorted(vectors.fingerprints.items())).encode()).hexdigest(),
    )


def plant_forest(index: VectorIndex, parameters: IndexParameters) -> tuple[Forest, dict[str, Any]]:
    """Build the Annoy forest over the index, and the stage's summary."""
    forest = build_forest(index, parameters.trees, parameters.seed)
    summary = {
        "stage": "index",
        "in": index.rows,
        "kept": index.rows,
        "refused": {},
        "datasets": len(index.datasets),
        "texts": len(index.vectors),
        "cells": len(index.cell_text),
        "trees": forest.trees,
        "encoder": index.encoder,
    }
    return forest, summary


@dataclass
class _Merge:
    """The index in the making."""

    encoder: str = ""
    texts: dict[bytes, int] = field(default_factory=dict)
    columns: dict[str, int] = field(default_factory=dict)
    vectors: list[np.ndarray] = field(default_factory=list)
    descriptions: list[np.ndarray] = field(default_factory=list)
    cell_text: list[np.ndarray] = field(default_factory=list)
    cell_column: list[np.ndarray] = field(default_factory=list)
    cells_per_row: list[np.ndarray] = field(default_factory=list)
    dataset_rows: list[int] = field(default_factory=list)

    def add(self, name: str, table: pa.Table) -> None:
        metadata = metadata_of(table)
        if metadata["encoder"] != (self.encoder or metadata["encoder"]):
            raise RebaseError(
                f"index: {name} was embedded with {metadata['encoder']!r}, the datasets before it with "
                f"{self.encoder!r}. Run the embed pipeline again: it embeds what differs."
            )
        self.encoder = metadata["encoder"]
        vectors = vectors_of(table)
        text_ids = self._add_texts(table["digest"].to_pylist(), vectors)
        column_ids = np.array([self.columns.setdefault(column, len(self.columns)) for column in metadata["columns"]])
        # One entry a cell: its row, its column, its text; the description's goes aside.
        lengths = table["rows"].combine_chunks().value_lengths().to_numpy()
        rows = table["rows"].combine_chunks().flatten().to_numpy()
        columns = column_ids[table["columns"].combine_chunks().flatten().to_numpy()]
        texts = np.repeat(text_ids, lengths)
        self.descriptions.append(vectors[np.repeat(np.arange(len(lengths)), lengths)[rows == DESCRIPTION][0]])
        order = np.argsort(rows, kind="stable")[(rows == DESCRIPTION).sum() :]
        self.cell_text.append(texts[order])
        self.cell_column.append(columns[order])
        self.cells_per_row.append(np.bincount(rows[order], minlength=metadata["dataset_rows"]))
        self.dataset_rows.append(metadata["dataset_rows"])

    def _add_texts(self, digests: list[bytes], vectors: np.ndarray) -> np.ndarray:
        """The number of each text in the merged index; texts that are new to it bring their vector."""
        new = [position for position, digest in enumerate(digests) if digest not in self.texts]
        self.texts.update({digests[position]: len(self.texts) + number for number, position in enumerate(new)})
        self.vectors.append(vectors[new])
        return np.array([self.texts[digest] for digest in digests])
