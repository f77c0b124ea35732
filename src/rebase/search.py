"""The index and its search: exact by one scan over all distinct texts, approximate by an Annoy forest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from rebase.errors import RebaseError

if TYPE_CHECKING:
    from annoy import AnnoyIndex

Aggregation = Literal["max_of_mean", "mean_of_max"]

#: The similarity of a row none of whose cells is embedded: the lowest there is, so that it sinks to the end.
NO_CELL = -1.0


@dataclass(frozen=True)
class VectorIndex:
    """Every distinct text's vector, and which cells it stands in.

    Rows are numbered in the total order (dataset, config, row), ``0 .. R - 1``; cells are sorted by row.

    Attributes:
        vectors: float32 ``[T, d]``, unit length, one a distinct text.
        descriptions: float32 ``[D, d]``, one a dataset.
        cell_text: int32 ``[C]``, the text of each cell.
        cell_column: int32 ``[C]``, the cell's column, a position in ``columns``.
        row_start: int64 ``[R + 1]``, row ``r`` has the cells ``row_start[r]:row_start[r + 1]``.
        dataset_start: int64 ``[D + 1]``, dataset ``i`` has the rows ``dataset_start[i]:dataset_start[i + 1]``.
        datasets: ``D`` names; columns: the names of all columns.
        encoder: the identity of the encoder that made the vectors.
        fingerprint: of the vectors that the index was built from.

    """

    vectors: np.ndarray
    descriptions: np.ndarray
    cell_text: np.ndarray
    cell_column: np.ndarray
    row_start: np.ndarray
    dataset_start: np.ndarray
    datasets: list[str]
    columns: list[str]
    encoder: str
    fingerprint: str

    @property
    def rows(self) -> int:
        """How many rows are indexed."""
        return len(self.row_start) - 1

    def dataset_of(self, rows: np.ndarray) -> np.ndarray:
        """The dataset of each row, as positions in ``datasets``."""
        return np.searchsorted(self.dataset_start, rows, side="right") - 1


@dataclass(frozen=True)
class Forest:
    """An Annoy forest over the index's texts (angular metric: cos = 1 - d²/2); ``annoy`` is None where trees = 0."""

    annoy: "AnnoyIndex | None"
    trees: int
    seed: int
    dimension: int
    count: int
    encoder: str
    fingerprint: str

    def check(self, index: VectorIndex) -> None:
        """Raise RebaseError unless the forest was built over this very index."""
        if self.fingerprint != index.fingerprint:
            raise RebaseError(
                f"The Annoy forest was built over another index ({self.fingerprint[:12]}, the index is "
                f"{index.fingerprint[:12]}). Build it again: kedro run --pipeline=index."
            )


@dataclass(frozen=True)
class TaskVectors:
    """The task as unit vectors: its instruction ``[d]``, its examples' queries and answers ``[E, d]`` each."""

    instruction: np.ndarray
    queries: np.ndarray
    answers: np.ndarray


@dataclass(frozen=True)
class Scores:
    """The three parts of every row's score, float32 ``[R]`` each (docs/method.md section 4)."""

    dataset: np.ndarray
    query: np.ndarray
    answer: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """S = (S_dataset + S_query + S_answer) / 3."""
        return (self.dataset + self.query + self.answer) / np.float32(3)


def score_rows(index: VectorIndex, task: TaskVectors, aggregation: Aggregation, block: int) -> Scores:
    """Score every row exactly, ``block`` texts at a time (arXiv 2407.05463, section 3; docs/method.md section 4)."""
    per_dataset = np.vecdot(index.descriptions, task.instruction)
    return Scores(
        dataset=np.repeat(per_dataset, np.diff(index.dataset_start)),
        query=_aggregate(index, task.queries, aggregation, block),
        answer=_aggregate(index, task.answers, aggregation, block),
    )


def rank_rows(scores: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` best rows by the total order (-score, row): equal scores stand in row order."""
    count = min(count, len(scores))
    if count < len(scores):
        threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
        rows = np.flatnonzero(scores >= threshold)
    else:
        rows = np.arange(len(scores))
    return rows[np.lexsort((rows, -scores[rows]))][:count]


def best_cell(index: VectorIndex, row: int, examples: np.ndarray) -> str | None:
    """The column of the row whose cell is nearest to the mean of the examples ``[E, d]``; None without cells."""
    cells = slice(index.row_start[row], index.row_start[row + 1])
    if cells.start == cells.stop:
        return None
    similarity = index.vectors[index.cell_text[cells]] @ examples.mean(axis=0)
    return index.columns[index.cell_column[cells][int(np.argmax(similarity))]]


def build_forest(index: VectorIndex, trees: int, seed: int) -> Forest:
    """Build the Annoy forest over the distinct texts; the same seed gives the same trees."""
    annoy = None
    if trees:
        from annoy import AnnoyIndex

        annoy = AnnoyIndex(index.vectors.shape[1], "angular")
        annoy.set_seed(seed)
        for number, vector in enumerate(index.vectors):
            annoy.add_item(number, vector)
        # One job: with several, the seed of a tree depends on the number of cores.
        annoy.build(trees, n_jobs=1)
    count, dimension = index.vectors.shape
    return Forest(annoy, trees, seed, dimension, count, index.encoder, index.fingerprint)


def annoy_candidates(index: VectorIndex, forest: Forest, queries: Sequence[np.ndarray], count: int) -> np.ndarray:
    """The rows that hold one of the ``count`` texts nearest to any of the query vectors, in row order.

    Raises RebaseError where there is no forest, or one of another index.
    """
    forest.check(index)
    if forest.annoy is None:
        raise RebaseError("search: annoy needs a forest, but `index.trees` is 0. Set it to 10 or more.")
    texts = {text for query in queries for text in forest.annoy.get_nns_by_vector(query, count)}
    cells = np.flatnonzero(np.isin(index.cell_text, np.fromiter(texts, dtype=np.int64)))
    return np.unique(np.searchsorted(index.row_start, cells, side="right") - 1)


def query_vectors(examples: np.ndarray, aggregation: Aggregation) -> np.ndarray:
    """The vectors that are searched for: one mean of the examples, or each example."""
    return examples.mean(axis=0, keepdims=True) if aggregation == "max_of_mean" else examples


def _aggregate(index: VectorIndex, examples: np.ndarray, aggregation: Aggregation, block: int) -> np.ndarray:
    """Per row the max over its cells, then the mean over the query vectors.

    ``max_of_mean`` has one query vector: the mean of dot products is the dot product with the mean vector.
    """
    queries = query_vectors(examples, aggregation)
    starts = index.row_start[:-1]
    filled = np.diff(index.row_start) > 0
    result = np.full(index.rows, NO_CELL, dtype=np.float32)
    if not filled.any():
        return result
    total = np.zeros(int(filled.sum()), dtype=np.float32)
    for query in queries:
        # vecdot, not @: a matrix product rounds by a row's place in its block, and equal vectors would not tie.
        per_text = np.concatenate(
            [np.vecdot(index.vectors[start : start + block], query) for start in range(0, len(index.vectors), block)]
        )
        # reduceat over the filled rows alone: for an empty row it would return its neighbour's cell.
        total += np.maximum.reduceat(per_text[index.cell_text], starts[filled])
    result[filled] = total / np.float32(len(queries))
    return result
