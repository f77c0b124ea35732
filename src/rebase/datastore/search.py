"""The exact search of the index, in two stages (docs/method.md section 4).

The first stage scans int8 codes and bounds every row's score from below and above. The second stage scores in double
precision the rows that may be among the best. The result is that of a brute force over all vectors.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import chain
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from rebase.datastore.segments import CODE_MAX, ROUNDING, TEXTS_AT_ONCE, Segment
from rebase.datastore.shards import Shards
from rebase.datastore.vectors import vectors_of
from rebase.errors import RebaseError

Aggregation = Literal["max_of_mean", "mean_of_max"]
#: Reads one dataset's shard of vectors.
VectorReader = Callable[[], pa.Table]

#: The similarity of a row without embedded cells: the lowest possible one, so that the row is ranked last.
NO_CELL = -1.0
#: How many texts are scanned at once, which bounds the memory.
BLOCK_TEXTS = 500_000
#: How much the order of summing the parts of a score in double precision may change it.
_SUMMING = 1e-12
#: The value of every half-precision number, by its bits.
_HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float64)
#: A row of a segment, both by number, with S between ``lower`` and ``upper``.
_BOUNDS = np.dtype([("segment", np.int64), ("row", np.int64), ("lower", np.float64), ("upper", np.float64)])


@dataclass(frozen=True)
class TaskVectors:
    """The task as unit vectors: its instruction ``[d]``, its examples' queries and answers ``[E, d]`` each.

    ``encoder`` is the identity of the encoder that made them.
    """

    instruction: np.ndarray
    queries: np.ndarray
    answers: np.ndarray
    encoder: str

    def sides(self, aggregation: Aggregation) -> tuple[np.ndarray, np.ndarray]:
        """The vectors that the query side and the answer side are compared with, float64 ``[Q, d]`` each.

        ``max_of_mean``: the mean of the examples, since a mean of dot products is the dot product with the mean
        vector. ``mean_of_max``: each example.
        """
        sides = self.queries.astype(np.float64), self.answers.astype(np.float64)
        if aggregation == "max_of_mean":
            return sides[0].mean(axis=0, keepdims=True), sides[1].mean(axis=0, keepdims=True)
        return sides


@dataclass(frozen=True)
class Ranking:
    """A task's best rows: ``scanned`` rows were bounded, ``rescored`` rows were scored exactly.

    ``lines`` has one line a row, best first: ``dataset``, ``row`` (its position in the dataset), ``score`` and its
    parts ``score_dataset``, ``score_query`` and ``score_answer``, and the columns whose cells match best,
    ``query_column`` and ``answer_column`` (None for a row without cells).
    """

    lines: pd.DataFrame
    scanned: int
    rescored: int


def search_exact(
    index: Shards, vectors: Shards, tasks: Sequence[TaskVectors], count: int, aggregation: Aggregation
) -> list[Ranking]:
    """Find the true ``count`` best rows of each task, in one pass over the index.

    S = (S_dataset + S_query + S_answer) / 3 (arXiv 2407.05463, section 3); rows have the total order (-score, dataset,
    row). Raises RebaseError if another encoder made the index than the tasks' vectors.
    """
    scanned = 0
    datasets: dict[str, list[str]] = {}
    candidates = [np.empty(0, _BOUNDS)] * len(tasks)
    scan = partial(_scan, tasks=tasks, count=count, aggregation=aggregation)
    for number, (segment, (names, row_count, bounds_by_task)) in enumerate(index.map(dict.fromkeys(index, scan))):
        datasets[segment] = names
        scanned += row_count
        for position, bounds in enumerate(bounds_by_task):
            numbered = bounds.copy()  # Ray's arrays are read-only.
            numbered["segment"] = number
            candidates[position] = _may_be_best(np.concatenate([candidates[position], numbered]), count)
    rankings = []
    for task, bounds in zip(tasks, candidates, strict=True):
        jobs = {}
        for number, (segment, names) in enumerate(datasets.items()):
            rows = np.sort(bounds["row"][bounds["segment"] == number])
            if len(rows):
                readers = {name: vectors.reader(name) for name in names}
                jobs[segment] = partial(score_rows, task=task, rows=rows, aggregation=aggregation, vectors=readers)
        rankings.append(rank([lines for _, lines in index.map(jobs)], scanned, count))
    return rankings


def _may_be_best(bounds: np.ndarray, count: int) -> np.ndarray:
    """The rows that may be among the ``count`` best: their upper bound reaches the ``count``-th highest lower bound."""
    if len(bounds) <= count:
        return bounds
    return bounds[bounds["upper"] >= np.partition(bounds["lower"], -count)[-count]]


@dataclass(frozen=True)
class _Queries:
    """Query vectors ``[Q, d]`` as int16 codes, with the numbers that bound the similarity to them."""

    codes: np.ndarray
    scales: np.ndarray
    norms: np.ndarray
    errors: np.ndarray

    @classmethod
    def quantize(cls, queries: np.ndarray) -> "_Queries":
        # No sum of d products may exceed int32: |code| <= 127 and |query| <= largest.
        largest = min(2**15 - 1, (2**31 - 1) // (CODE_MAX * queries.shape[1]))
        peaks = np.abs(queries).max(axis=1)
        scales = (np.where(peaks > 0, peaks, 1) / largest).astype(np.float32)
        codes = np.rint(queries / scales[:, None].astype(np.float64)).clip(-largest, largest).astype(np.int16)
        errors = np.linalg.norm(queries - scales[:, None].astype(np.float64) * codes, axis=1)
        return cls(codes, scales, np.linalg.norm(queries, axis=1), errors)

    def bound(self, segment: Segment, texts: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds of the similarity to the chosen texts of a segment, float32 ``[Q, texts]`` each."""
        from rebase.datastore.kernels import bound_texts

        codes = segment.codes[texts]
        lower, upper = np.empty((2, len(self.codes), len(codes)), dtype=np.float32)
        # The margin covers the rounding of these numbers to single precision.
        norms, errors = ((1 + ROUNDING) * part for part in (self.norms, self.errors * segment.reach[0]))
        bound_texts(
            codes, segment.scales[texts], segment.errors[texts], self.codes, self.scales,
            norms.astype(np.float32), errors.astype(np.float32), lower, upper,
        )  # fmt: skip
        return lower, upper


def _scan(
    table: pa.Table, tasks: Sequence[TaskVectors], count: int, aggregation: Aggregation
) -> tuple[list[str], int, list[np.ndarray]]:
    """The first stage over one segment.

    Returns its datasets, the number of its rows, and for each task the ``_BOUNDS`` of the rows that may be among the
    ``count`` best.
    """
    from rebase.datastore.kernels import bound_rows

    segment = Segment.from_table(table)
    for task in tasks:
        check_encoder(segment.encoder, task.encoder)
    sides = [side for task in tasks for side in task.sides(aggregation)]
    queries = _Queries.quantize(np.concatenate(sides))
    lower, upper = np.full((2, len(queries.codes), segment.rows), NO_CELL)
    for first, last in _blocks(segment.text_start):
        texts = slice(segment.text_start[first], segment.text_start[last])
        rows = slice(segment.dataset_start[first], segment.dataset_start[last])
        row_start = segment.row_start[rows.start : rows.stop + 1]
        cell_text = segment.cell_text[row_start[0] : row_start[-1]] - np.int32(texts.start)
        bound_rows(*queries.bound(segment, texts), cell_text, row_start - row_start[0], rows.start, lower, upper)
    ends = np.cumsum(list(map(len, sides)))[:-1]
    lower_means, upper_means = ([_mean(side) for side in np.split(bounds, ends)] for bounds in (lower, upper))
    bounds_by_task = []
    for number, task in enumerate(tasks):
        per_dataset = np.repeat(_similarity(segment.descriptions, task.instruction), np.diff(segment.dataset_start))
        of_task = slice(2 * number, 2 * number + 2)
        bounds = np.zeros(segment.rows, _BOUNDS)
        bounds["row"] = np.arange(segment.rows)
        bounds["lower"] = (per_dataset + sum(lower_means[of_task])) / 3 - _SUMMING
        bounds["upper"] = (per_dataset + sum(upper_means[of_task])) / 3 + _SUMMING
        bounds_by_task.append(_may_be_best(bounds, count))
    return segment.datasets, segment.rows, bounds_by_task


def check_encoder(built_with: str, encoder: str) -> None:
    """Raise RebaseError if the index was built with another encoder than the one that embeds the task."""
    if built_with != encoder:
        raise RebaseError(
            f"The index was built with the encoder {built_with!r}, but `encoder` is {encoder!r}. "
            "Set `encoder.model` in globals.yml back, or build the datastore again: "
            "kedro run --pipelines=embed,index."
        )


def _blocks(text_start: np.ndarray) -> Iterator[tuple[int, int]]:
    """Runs of datasets, as (first, last + 1), of at most ``BLOCK_TEXTS`` texts, or of one dataset that has more."""
    first = 0
    while first < len(text_start) - 1:
        last = int(np.searchsorted(text_start, text_start[first] + BLOCK_TEXTS, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


def score_rows(
    table: pa.Table, task: TaskVectors, rows: np.ndarray, aggregation: Aggregation, vectors: Mapping[str, VectorReader]
) -> pd.DataFrame:
    """The second stage over one segment: score its ``rows`` in double precision, from the exact vectors.

    Returns the lines of a ``Ranking``, in the order of ``rows``.
    """
    segment = Segment.from_table(table)
    sides = task.sides(aggregation)
    queries = np.concatenate(sides)
    cells, owner = _cells_to_score(segment, queries, rows)
    texts, text_of_cell = np.unique(segment.cell_text[cells], return_inverse=True)
    similarity = _exact_similarities(segment, texts, queries, vectors)[:, text_of_cell]
    filled, starts, number = np.unique(owner, return_index=True, return_inverse=True)
    dataset = np.searchsorted(segment.dataset_start, rows, side="right") - 1
    columns = segment.columns.values()
    names = np.array(list(chain.from_iterable(columns)), dtype=object)
    first_name = np.cumsum([0, *map(len, columns)])
    lines = {
        "dataset": pd.Series(np.array(segment.datasets, dtype=object)[dataset], dtype=object),
        "row": rows - segment.dataset_start[dataset],
        "score_dataset": _similarity(segment.descriptions, task.instruction)[dataset],
    }
    for side, part in zip(("query", "answer"), np.split(similarity, [len(sides[0])]), strict=True):
        score = np.full(len(rows), NO_CELL)
        score[filled] = _mean(np.maximum.reduceat(part, starts, axis=1))
        nearest = part.max(axis=0)
        is_best = nearest == np.maximum.reduceat(nearest, starts)[number]
        best = cells[is_best][np.unique(owner[is_best], return_index=True)[1]]
        column = np.full(len(rows), None, dtype=object)
        column[filled] = names[first_name[dataset[filled]] + segment.cell_column[best]]
        lines |= {f"score_{side}": score, f"{side}_column": pd.Series(column, dtype=object)}
    lines["score"] = (lines["score_dataset"] + lines["score_query"] + lines["score_answer"]) / 3
    return pd.DataFrame(lines)


def _cells_to_score(segment: Segment, queries: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows' cells that may be their row's nearest to one of the queries, and the position in ``rows`` of each."""
    lengths = segment.row_start[rows + 1] - segment.row_start[rows]
    owner = np.repeat(np.arange(len(rows)), lengths)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    cells = segment.row_start[rows][owner] + within
    lower, upper = _Queries.quantize(queries).bound(segment, segment.cell_text[cells])
    _, starts, number = np.unique(owner, return_index=True, return_inverse=True)
    keep = (upper >= np.maximum.reduceat(lower, starts, axis=1)[:, number]).any(axis=0)
    return cells[keep], owner[keep]


def _exact_similarities(
    segment: Segment, texts: np.ndarray, queries: np.ndarray, vectors: Mapping[str, VectorReader]
) -> np.ndarray:
    """Similarities ``[Q, texts]`` from the exact vectors; ``texts`` are sorted numbers of the segment's texts."""
    from rebase.datastore.kernels import widen

    result = np.empty((len(queries), len(texts)))
    cuts = np.searchsorted(texts, segment.text_start)
    for number, name in enumerate(segment.datasets):
        begin, end = cuts[number : number + 2]
        if begin == end:
            continue
        halves = vectors_of(vectors[name]()).view(np.uint16)
        for start in range(begin, end, TEXTS_AT_ONCE):
            part = slice(start, min(start + TEXTS_AT_ONCE, end))
            exact = np.empty((part.stop - part.start, segment.dimension))
            widen(halves, texts[part] - segment.text_start[number], _HALVES, exact)
            for position, query in enumerate(queries):
                result[position, part] = np.vecdot(exact, query)
    return result


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over the first axis, summed in order: the order of numpy's mean depends on the number of columns."""
    return reduce(np.add, values) / len(values)


def _similarity(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Dot products in double precision.

    A matrix product would round by the position of a row in its block, and equal vectors would not tie.
    """
    return np.vecdot(vectors.astype(np.float64), query.astype(np.float64))


_NO_LINES = pd.DataFrame({"dataset": [], "row": [], "score": []})


def rank(segments: list[pd.DataFrame], scanned: int, count: int) -> Ranking:
    """The ``count`` best of the scored rows of all segments, in the total order (-score, dataset, row)."""
    lines = pd.concat(segments or [_NO_LINES], ignore_index=True)
    ranked = lines.sort_values(["score", "dataset", "row"], ascending=[False, True, True], ignore_index=True)
    return Ranking(ranked.head(count), scanned, len(lines))
