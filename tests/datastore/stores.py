"""Small datastores in memory: vectors as embed makes them, and their index."""

from dataclasses import replace
from itertools import groupby

import numpy as np
import pyarrow as pa

from rebase.datastore.search import TaskVectors
from rebase.datastore.shards import Shards, with_metadata
from rebase.datastore.vectors import DESCRIPTION
from rebase.pipelines.index.nodes import build_segment


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def embedded(vectors, rows, description):
    """A shard of vectors as embed makes it; ``rows`` have cells (text, column), ``description`` is a text's number."""
    places = [[] for _ in vectors]
    places[description].append((DESCRIPTION, 0))
    for number, row in enumerate(rows):
        for text, column in row:
            places[text].append((number, 1 + column))
    values = pa.array(np.asarray(vectors, dtype=np.float16).reshape(-1))
    table = pa.table(
        {
            "vector": pa.FixedSizeListArray.from_arrays(values, len(vectors[0])),
            "rows": pa.array([[row for row, _ in of_text] for of_text in places], pa.list_(pa.int32())),
            "columns": pa.array([[column for _, column in of_text] for of_text in places], pa.list_(pa.int32())),
        }
    )
    width = 1 + max((column for row in rows for _, column in row), default=0)
    columns = ["", *(f"c{number}" for number in range(width))]
    return with_metadata(table, {"encoder": "e", "columns": columns, "dataset_rows": len(rows)})


def stores(tables, per_segment):
    """The datasets' vectors, and their index in segments of so many datasets, held in memory."""
    vectors = {f"d{number:02}": table for number, table in enumerate(tables)}
    segments = {}
    for _, names in groupby(vectors, key=lambda name: int(name[1:]) // per_segment):
        run = list(names)
        segments[run[0]] = build_segment({name: vectors[name] for name in run}).to_table()
    return in_memory(segments), in_memory(vectors)


def in_memory(tables):
    return Shards(dict.fromkeys(tables, "f"), lambda name, _: tables[name])


def many(seed=0, datasets=6, rows=200, columns=3, dimension=48):
    """Clustered vectors, with duplicates within and between datasets."""
    random = np.random.default_rng(seed)
    centers = unit(random.normal(size=(15, dimension)))
    tables = []
    for _ in range(datasets):
        near = centers[random.integers(15, size=rows * columns)]
        texts = unit(near + 0.05 * random.normal(size=near.shape))
        texts[::7] = centers[0]
        lines = [[(row * columns + column, column) for column in range(columns)] for row in range(rows)]
        tables.append(embedded(texts, lines, 0))
    task = TaskVectors(*(unit(random.normal(size=shape) + centers[3]) for shape in (48, (3, 48), (3, 48))), "e")
    return tables, replace(task, instruction=task.instruction.reshape(-1))
