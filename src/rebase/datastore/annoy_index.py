"""Annoy forests over the index: approximate search, and looking around (docs/method.md sections 3 and 4)."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from rebase.datastore.search import Aggregation, Ranking, TaskVectors, VectorReader, rank, readers_of, score_exactly
from rebase.datastore.segments import Segment
from rebase.datastore.shards import Shards
from rebase.errors import RebaseError


def search_annoy(
    index: Shards,
    forest: Shards,
    vectors: Shards,
    task: TaskVectors,
    count: int,
    aggregation: Aggregation,
    candidates: int,
) -> Ranking:
    """The ``count`` best of the rows that hold one of the ``candidates`` texts nearest to a query vector.

    Raises RebaseError where there is no forest, or one of another index.
    """
    queries = np.concatenate(task.sides(aggregation))
    near = find_near(index, forest, queries, candidates)
    jobs = {
        segment: partial(
            _rescore_holders,
            task=task,
            texts=group["text"].unique(),
            aggregation=aggregation,
            # A text of one dataset stands in that dataset's rows only.
            vectors=readers_of(vectors, group["dataset"].unique()),
        )
        for segment, group in near.groupby("segment")
    }
    found = [lines for _, lines in index.map(jobs)]
    return rank([[lines] for lines in found], [sum(map(len, found))], count)[0]


def find_near(index: Shards, forest: Shards, queries: np.ndarray, count: int) -> pd.DataFrame:
    """The ``count`` texts nearest to each query vector ``[Q, d]``, about: what Annoy's forests find.

    A line a text, nearest first: ``query`` (its number), ``similarity``, ``dataset`` and ``place`` (the text's
    number in that dataset's shard of vectors), ``segment`` and ``text`` (its number there). Raises RebaseError where
    there is no forest, or one of another index.
    """
    if set(forest) != {forest_name(index, name) for name in index}:
        raise RebaseError(
            "search: annoy needs a forest over this very index. Set `index.trees` to 10 or more and build it: "
            "kedro run --pipelines=index."
        )
    jobs = {
        name: partial(_near, forest=forest.later(forest_name(index, name)), queries=queries, count=count)
        for name in index
    }
    near = pd.concat([lines.assign(segment=name) for name, lines in index.map(jobs)], ignore_index=True)
    near = near.sort_values(["query", "similarity", "segment", "text"], ascending=[True, False, True, True])
    return near.groupby("query").head(count).reset_index(drop=True)


def forest_name(index: Shards, segment: str) -> str:
    """The name of a segment's forest, which tells forests of earlier segments apart."""
    return f"{segment}@{index.fingerprints[segment][:16]}"


def plant_forest(segment: Segment, vectors: Iterable[np.ndarray], trees: int, seed: int) -> Callable[[Path], None]:
    """An Annoy forest over a segment's texts, built on disk by the function that is returned (angular metric).

    ``vectors`` are the datasets' ``[texts, d]``, in order. The same seed gives the same trees.
    """

    def build(path: Path) -> None:
        from annoy import AnnoyIndex

        annoy = AnnoyIndex(segment.dimension, "angular")
        annoy.on_disk_build(str(path))
        annoy.set_seed(seed)
        numbers = iter(range(len(segment.codes)))
        for part in vectors:
            for vector in part.astype(np.float32):
                annoy.add_item(next(numbers), vector)
        # One job: with several, the seed of a tree depends on the number of cores.
        annoy.build(trees, n_jobs=1)
        annoy.unload()

    return build


def _rescore_holders(
    table: pa.Table, task: TaskVectors, texts: np.ndarray, aggregation: Aggregation, vectors: Mapping[str, VectorReader]
) -> pd.DataFrame:
    """The exact scores of a segment's rows that hold one of the texts."""
    segment = Segment.from_table(table)
    holders = np.searchsorted(segment.row_start, np.flatnonzero(np.isin(segment.cell_text, texts)), side="right") - 1
    return score_exactly(segment, task, np.unique(holders), aggregation, vectors)


def _near(table: pa.Table, forest: Callable[[], Path], queries: np.ndarray, count: int) -> pd.DataFrame:
    """The texts of a segment nearest to each query, by its forest."""
    from annoy import AnnoyIndex

    segment = Segment.from_table(table)
    annoy: AnnoyIndex = AnnoyIndex(segment.dimension, "angular")
    annoy.load(str(forest()))
    if annoy.get_n_items() != len(segment.codes):
        raise RebaseError(
            "The Annoy forest is damaged. Delete its folder and build it again: kedro run --pipelines=index."
        )
    lines = []
    for number, query in enumerate(queries):
        texts, distances = annoy.get_nns_by_vector(query, count, include_distances=True)
        # Angular distance of Annoy: cos = 1 - d²/2.
        lines.append(pd.DataFrame({"query": number, "text": texts, "similarity": 1 - np.square(distances) / 2}))
    found = pd.concat(lines, ignore_index=True)
    dataset = np.searchsorted(segment.text_start, found["text"], side="right") - 1
    return found.assign(
        dataset=np.array(segment.datasets, dtype=object)[dataset], place=found["text"] - segment.text_start[dataset]
    )
