"""The Annoy index: approximate nearest texts, and a search with them (docs/method.md sections 3 and 4)."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from rebase.datastore.search import Aggregation, Ranking, TaskVectors, VectorReader, rank, score_rows
from rebase.datastore.segments import Segment
from rebase.datastore.shards import Shards
from rebase.errors import RebaseError


def search_annoy(
    index: Shards,
    annoy_index: Shards,
    vectors: Shards,
    task: TaskVectors,
    count: int,
    aggregation: Aggregation,
    candidates: int,
) -> Ranking:
    """Rank the rows that hold one of the ``candidates`` texts nearest to a query vector; return the ``count`` best.

    Raises RebaseError if there is no Annoy index, or if it belongs to another index.
    """
    nearest = find_near(index, annoy_index, np.concatenate(task.sides(aggregation)), candidates)
    jobs = {}
    for segment, group in nearest.groupby("segment"):
        # Only the dataset of a text has rows that hold it.
        readers = {name: vectors.reader(name) for name in group["dataset"].unique()}
        texts = group["text"].unique()
        jobs[segment] = partial(_score_holders, task=task, texts=texts, aggregation=aggregation, vectors=readers)
    scored = [lines for _, lines in index.map(jobs)]
    return rank(scored, sum(map(len, scored)), count)


def find_near(index: Shards, annoy_index: Shards, queries: np.ndarray, count: int) -> pd.DataFrame:
    """Find approximately the ``count`` texts nearest to each query vector ``[Q, d]``.

    Returns:
        One line a text, nearest first: ``query`` (its number), ``similarity``, ``dataset`` and ``position`` (in that
        dataset's shard of vectors), ``segment`` and ``text`` (its number in the segment).

    Raises:
        RebaseError: There is no Annoy index, or it belongs to another index.

    """
    if set(annoy_index) != {annoy_index_name(index, name) for name in index}:
        raise RebaseError(
            f"search: {annoy_index.folder} has no Annoy index of the datastore as it is now. Set `index.trees` to 10 "
            "or more and build it: kedro run --pipelines=index."
        )
    jobs = {}
    for name in index:
        read_file = annoy_index.reader(annoy_index_name(index, name))
        jobs[name] = partial(_nearest_in_segment, annoy_file=read_file, queries=queries, count=count)
    nearest = pd.concat([lines.assign(segment=name) for name, lines in index.map(jobs)], ignore_index=True)
    nearest = nearest.sort_values(["query", "similarity", "segment", "text"], ascending=[True, False, True, True])
    return nearest.groupby("query").head(count).reset_index(drop=True)


def annoy_index_name(index: Shards, segment: str) -> str:
    """The shard name of a segment's Annoy index; it changes with the segment."""
    return f"{segment}@{index.fingerprints[segment][:16]}"


def write_annoy_index(segment: Segment, vectors: Iterable[np.ndarray], trees: int, seed: int, path: Path) -> None:
    """Write a file with the Annoy index (angular metric) of a segment's texts.

    ``vectors`` are the datasets' ``[texts, d]``, in order. The same seed gives the same trees.
    """
    from annoy import AnnoyIndex

    annoy = AnnoyIndex(segment.dimension, "angular")
    annoy.on_disk_build(str(path))
    annoy.set_seed(seed)
    for number, vector in enumerate(vector for part in vectors for vector in part.astype(np.float32)):
        annoy.add_item(number, vector)
    # One job: with several, the seed of a tree depends on the number of cores.
    annoy.build(trees, n_jobs=1)
    annoy.unload()


def _score_holders(
    table: pa.Table, task: TaskVectors, texts: np.ndarray, aggregation: Aggregation, vectors: Mapping[str, VectorReader]
) -> pd.DataFrame:
    """The exact scores of a segment's rows that hold one of the texts."""
    segment = Segment.from_table(table)
    holders = np.searchsorted(segment.row_start, np.flatnonzero(np.isin(segment.cell_text, texts)), side="right") - 1
    return score_rows(table, task, np.unique(holders), aggregation, vectors)


def _nearest_in_segment(
    table: pa.Table, annoy_file: Callable[[], Path], queries: np.ndarray, count: int
) -> pd.DataFrame:
    """The texts of a segment nearest to each query, by its Annoy index."""
    from annoy import AnnoyIndex

    segment = Segment.from_table(table)
    annoy: AnnoyIndex = AnnoyIndex(segment.dimension, "angular")
    annoy.load(str(annoy_file()))
    if annoy.get_n_items() != len(segment.codes):
        raise RebaseError(
            f"The Annoy index {annoy_file()} is damaged. Delete its folder and build it again: "
            "kedro run --pipelines=index."
        )
    parts = []
    for number, query in enumerate(queries):
        texts, distances = annoy.get_nns_by_vector(query, count, include_distances=True)
        # Angular distance of Annoy: cos = 1 - d²/2.
        parts.append(pd.DataFrame({"query": number, "text": texts, "similarity": 1 - np.square(distances) / 2}))
    lines = pd.concat(parts, ignore_index=True)
    dataset = np.searchsorted(segment.text_start, lines["text"], side="right") - 1
    return lines.assign(
        dataset=np.array(segment.datasets, dtype=object)[dataset], position=lines["text"] - segment.text_start[dataset]
    )
