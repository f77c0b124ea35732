"""Time the exact search against other methods, in one run.

    python benchmarks/retrieve.py [--cells 1000000] [--vectors FOLDER] [--top 1000 3000] [--seed 3407]

Synthetic clustered vectors (or, with --vectors, a datastore's folder of vectors, such as
``data/03_primary/public/vectors``), a task of three examples, and the rows that score best by
S = (S_dataset + S_query + S_answer) / 3. Every method starts with its index ready in memory or in the page cache.

- ``exact``: this project's two stages, from its memory-mapped files.
- ``numpy``: all float32 vectors times the two query vectors, the maximum of each row, partition and sort.
- ``faiss``: faiss-cpu IndexFlatIP finds the K cells nearest to each query vector; their rows are scored exactly.
- ``annoy``: the same with an Annoy index. K grows from N until 95 % of the true rows are found.
- ``published``: a Python dictionary of cells and a torch cosine similarity for each cell, measured on 20,000 cells and
extrapolated.

Each time is the shortest of several rounds, in which the methods run in turns. The last line is JSON; its ratios are
for the largest --top. A ratio of 3 means that ``exact`` took a third of the time.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import torch
from annoy import AnnoyIndex

from rebase.datasets import ShardStore
from rebase.datastore.search import NO_CELL, TaskVectors, _scan, search_exact
from rebase.datastore.segments import Segment
from rebase.datastore.shards import Shard, ShardPlan, Shards, metadata_of, with_metadata
from rebase.datastore.vectors import DESCRIPTION, vectors_of
from rebase.pipelines.index.nodes import plan_index

AGGREGATION = "max_of_mean"
BLOCK = 500_000
ROWS, COLUMNS = 1000, 8  # of a synthetic dataset
CENTERS = 2000
FACTORS = (1, 2, 5, 10, 20, 50, 100)  # K as a multiple of N
PUBLISHED_CELLS = 20_000


@dataclass(frozen=True)
class Flat:
    """All cells as one float32 matrix ``[C, d]``, for the other methods; rows have consecutive numbers."""

    vectors: np.ndarray
    row_start: np.ndarray
    per_dataset: np.ndarray  # S_dataset of each row
    queries: np.ndarray  # [2, d]: the means of the examples' queries and answers

    def score(self, similarities: np.ndarray) -> np.ndarray:
        """S of every row, from the similarities of all cells ``[2, C]``."""
        sides = np.full((2, len(self.per_dataset)), NO_CELL, dtype=similarities.dtype)
        filled = np.diff(self.row_start) > 0
        sides[:, filled] = np.maximum.reduceat(similarities, self.row_start[:-1][filled], axis=1)
        return (self.per_dataset.astype(similarities.dtype) + sides[0] + sides[1]) / similarities.dtype.type(3)

    def best_of(self, cells: np.ndarray, count: int) -> np.ndarray:
        """Return the best rows among those with one of the cells."""
        rows = np.unique(np.searchsorted(self.row_start, np.unique(cells), side="right") - 1)
        lengths = self.row_start[rows + 1] - self.row_start[rows]
        starts = np.cumsum(lengths) - lengths
        every = np.arange(lengths.sum()) + np.repeat(self.row_start[rows] - starts, lengths)
        sides = np.maximum.reduceat(self.vectors[every] @ self.queries.T, starts, axis=0)
        return rows[np.argsort(-(self.per_dataset[rows] + sides.sum(axis=1)), kind="stable")[:count]]


def synthetic(cells: int, dimension: int, seed: int) -> tuple[dict[str, pa.Table], TaskVectors]:
    """Clustered unit vectors as embedded datasets, and a task near some of the clusters."""
    random = np.random.default_rng(seed)
    centers = unit(random.standard_normal((CENTERS, dimension), dtype=np.float32))
    tables = {}
    for number in range(cells // (ROWS * COLUMNS)):
        # A dataset draws from few clusters, like a real one.
        dataset_centers = centers[random.integers(CENTERS, size=20)]
        near = dataset_centers[random.integers(len(dataset_centers), size=ROWS * COLUMNS)]
        texts = unit(near + 0.04 * random.standard_normal(near.shape, dtype=np.float32))
        places = [[(index // COLUMNS, 1 + index % COLUMNS)] for index in range(len(texts))]
        places[0].insert(0, (DESCRIPTION, 0))
        table = pa.table(
            {
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(texts.astype(np.float16).reshape(-1)), dimension),
                "rows": pa.array([[row for row, _ in cells] for cells in places], pa.list_(pa.int32())),
                "columns": pa.array([[column for _, column in cells] for cells in places], pa.list_(pa.int32())),
            }
        )
        columns = ["", *(f"c{column}" for column in range(COLUMNS))]
        tables[f"d{number:05}"] = with_metadata(table, {"encoder": "e", "columns": columns, "dataset_rows": ROWS})

    def near(center: int, count: int) -> np.ndarray:
        return unit(centers[center] + 0.04 * random.standard_normal((count, dimension), dtype=np.float32))

    return tables, TaskVectors(near(0, 1)[0], near(1, 3), near(2, 3), "e")


def real(vectors: Shards, seed: int) -> TaskVectors:
    """Make a task from the datastore: two cells of each of three rows of a dataset, and its description."""
    random = np.random.default_rng(seed)
    names = [name for name in vectors if metadata_of(vectors[name])["cells"] > 20]
    table = vectors[names[random.integers(len(names))]]
    embedded = vectors_of(table).astype(np.float32)
    texts = random.choice(len(embedded), size=6, replace=False)
    described = next(text for text, rows in enumerate(table["rows"].to_pylist()) if DESCRIPTION in rows)
    return TaskVectors(embedded[described], embedded[texts[:3]], embedded[texts[3:]], metadata_of(table)["encoder"])


def unit(vectors: np.ndarray) -> np.ndarray:
    """Normalize the vectors to length 1."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def flatten(index: Shards, vectors: Shards, task: TaskVectors) -> tuple[Flat, list[str]]:
    """Return every cell's vector, and the datasets in order."""
    parts, starts, described, names = [], [np.array([0])], [], []
    for name in index:
        segment = Segment.from_table(index[name])
        texts = np.concatenate([vectors_of(vectors[dataset]) for dataset in segment.datasets]).astype(np.float32)
        parts.append(texts[segment.cell_text])
        starts.append(segment.row_start[1:] + starts[-1][-1])
        similarity = np.vecdot(segment.descriptions.astype(np.float64), task.instruction.astype(np.float64))
        described.append(np.repeat(similarity, np.diff(segment.dataset_start)))
        names += segment.datasets
    queries = np.stack([side.mean(axis=0) for side in (task.queries, task.answers)])
    return Flat(np.concatenate(parts), np.concatenate(starts), np.concatenate(described), queries), names


def truth(flat: Flat, task: TaskVectors) -> np.ndarray:
    """Return S of every row in double precision, computed block by block."""
    sides = [side.astype(np.float64).mean(axis=0) for side in (task.queries, task.answers)]
    blocks = range(0, len(flat.vectors), BLOCK)
    exact = [
        np.concatenate([np.vecdot(flat.vectors[start : start + BLOCK].astype(np.float64), side) for start in blocks])
        for side in sides
    ]
    return flat.score(np.stack(exact))


def by_numpy(flat: Flat, count: int) -> np.ndarray:
    """Return the best rows by one matrix product."""
    score = flat.score((flat.vectors @ flat.queries.T).T)
    rows = np.argpartition(-score, count)[:count]
    return rows[np.argsort(-score[rows], kind="stable")]


def by_python(flat: Flat) -> float:
    """Return the seconds of the published method for all cells: a torch cosine similarity for each cell."""
    rows = min(len(flat.per_dataset), int(np.searchsorted(flat.row_start, PUBLISHED_CELLS)))
    cells = {
        row: [torch.from_numpy(vector) for vector in flat.vectors[flat.row_start[row] : flat.row_start[row + 1]]]
        for row in range(rows)
    }
    queries = torch.from_numpy(flat.queries)
    started = time.perf_counter()
    scores = {
        row: sum(
            max((float(torch.cosine_similarity(query, cell, dim=0)) for cell in row_cells), default=NO_CELL)
            for query in queries
        )
        for row, row_cells in cells.items()
    }
    sorted(scores, key=scores.__getitem__, reverse=True)
    return (time.perf_counter() - started) * len(flat.vectors) / sum(map(len, cells.values()))


def widened(
    search: Callable[[np.ndarray, int], np.ndarray], flat: Flat, best: set[int], count: int
) -> tuple[Callable, float, int]:
    """Return the search with the smallest K that finds 95 % of the best rows (or the largest K), its recall, and K."""
    for factor in FACTORS:
        wanted = min(factor * count, len(flat.vectors))

        def once(wanted: int = wanted) -> np.ndarray:
            return flat.best_of(np.concatenate([search(query, wanted) for query in flat.queries]), count)

        recall = len(best & set(once().tolist())) / count
        if recall >= 0.95:
            break
    return once, recall, wanted


def read_codes(index: Shards) -> None:
    """Read every byte of the codes once, on all cores."""
    for name in index:
        words = Segment.from_table(index[name]).codes.reshape(-1)
        words = words[: len(words) // 8 * 8].view(np.int64)
        with ThreadPoolExecutor() as pool:
            list(pool.map(np.add.reduce, np.array_split(words, torch.get_num_threads())))


def take_turns(methods: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Return the shortest time of each method, in seconds."""
    least = dict.fromkeys(methods, float("inf"))
    for _ in range(rounds):
        for name, method in methods.items():
            time.sleep(0.2)  # the previous method's threads spin for a while
            started = time.perf_counter()
            method()
            least[name] = min(least[name], time.perf_counter() - started)
    return least


def main() -> None:  # noqa: PLR0915
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--top", type=int, nargs="+", default=[1000, 3000])
    parser.add_argument("--trees", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=3407)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.vectors:
            vectors = ShardStore(str(options.vectors), "arrow").load()
            task = real(vectors, options.seed)
        else:
            tables, task = synthetic(options.cells, options.dimension, options.seed)
            store = ShardStore(f"{folder}/vectors", "arrow")
            store.save(
                ShardPlan([Shard(name, "f" * 64, lambda _, table=table: table) for name, table in tables.items()])
            )
            del tables
            vectors = store.load()
        index_store = ShardStore(f"{folder}/index", "arrow")
        index_store.save(plan_index(vectors))
        index = index_store.load()
        flat, names = flatten(index, vectors, task)
        print(f"{len(flat.vectors):,} cells of {len(flat.per_dataset):,} rows of {len(names):,} datasets, "
              f"{flat.vectors.shape[1]} dimensions, {torch.get_num_threads()} threads")  # fmt: skip
        faiss_index = faiss.IndexFlatIP(flat.vectors.shape[1])
        faiss_index.add(flat.vectors)
        annoy = AnnoyIndex(flat.vectors.shape[1], "angular")
        annoy.set_seed(options.seed)
        for number, vector in enumerate(flat.vectors):
            annoy.add_item(number, vector)
        annoy.build(options.trees, n_jobs=-1)
        exact_scores = truth(flat, task)
        firsts = dict(
            zip(
                names,
                np.concatenate([[0], np.cumsum([metadata_of(vectors[n])["dataset_rows"] for n in names])]),
                strict=False,
            )
        )
        violations = 0
        first = 0
        for name in index:
            _, rows, (bounds,) = _scan(index[name], [task], 10**9, AGGREGATION)
            segment_scores = exact_scores[first : first + rows]
            violations += int(((segment_scores < bounds["lower"]) | (segment_scores > bounds["upper"])).sum())
            first += rows
        for count in options.top:
            best = np.lexsort((np.arange(len(exact_scores)), -exact_scores))[:count]
            near_faiss, faiss_recall, faiss_k = widened(
                lambda query, k: faiss_index.search(query[None], k)[1][0], flat, set(best.tolist()), count
            )
            near_annoy, annoy_recall, annoy_k = widened(
                lambda query, k: np.array(annoy.get_nns_by_vector(query, k)), flat, set(best.tolist()), count
            )
            exact = lambda count=count: search_exact(index, vectors, [task], count, AGGREGATION)[0]  # noqa: E731
            methods = {
                "exact": exact,
                "codes_read": lambda: read_codes(index),
                "numpy": lambda count=count: by_numpy(flat, count),
                "faiss": near_faiss,
                "annoy": near_annoy,
            }
            seconds = take_turns(methods, options.rounds) | {"published": by_python(flat)}
            ranking = exact()
            rows = [firsts[line.dataset] + line.row for line in ranking.lines.itertuples()]
            recall = float(np.mean(np.array(rows) == best))
            print(f"\ntop {count:,}: rescored {ranking.rescored:,} of {ranking.scanned:,} rows; "
                  f"the same rows in the same order as float64: {recall:.4f}")  # fmt: skip
            notes = {
                "faiss": f"K {faiss_k:,}, recall {faiss_recall:.3f}",
                "annoy": f"K {annoy_k:,}, recall {annoy_recall:.3f}, {options.trees} trees",
            }
            for name, value in seconds.items():
                print(f"  {name:<10} {1000 * value:9.1f} ms {value / seconds['exact']:8.2f} x  {notes.get(name, '')}")
        result = {
            "cells": len(flat.vectors), "top": count, "seed": options.seed,
            "vectors": str(options.vectors or "synthetic"),
            "vs_numpy": seconds["numpy"] / seconds["exact"], "vs_faiss_flat": seconds["faiss"] / seconds["exact"],
            "faiss_flat_recall": faiss_recall, "vs_annoy_95": seconds["annoy"] / seconds["exact"], "annoy_recall":
            annoy_recall, "vs_published": seconds["published"] / seconds["exact"], "recall": recall,
            "bound_violations": violations, "vs_codes_read": seconds["exact"] / seconds["codes_read"], "rescored":
            ranking.rescored,
        }  # fmt: skip
        print(
            json.dumps({name: round(value, 4) if isinstance(value, float) else value for name, value in result.items()})
        )


if __name__ == "__main__":
    main()
