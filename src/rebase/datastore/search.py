"""The exact search of the index, in two stages (docs/method.md section 4).

The first stage scans int8 codes and bounds every row's score from below and above. The second stage scores in double
precision the rows that may be among the best. The result is that of a brute force over all vectors.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from rebase.datastore.segments import CODE_MAX, ROUNDING, TEXTS_AT_ONCE, Segment
from rebase.datastore.shards import Shards
from rebase.datastore.vectors import vectors_of
from rebase.errors import RebaseError

Aggregation = Literal["max_of_mean", "mean_of_max"]
#: Reads one dataset's vectors, float16 ``[texts, d]``.
VectorReader = Callable[[], np.ndarray]

#: The similarity of a row without embedded cells: the lowest possible one, so that the row is ranked last.
NO_CELL = -1.0
#: How many texts are scanned at once, which bounds the memory.
BLOCK_TEXTS = 500_000
#: How much the order of summing the parts of a score in double precision may change it.
_SUMMING = 1e-12
#: The value of every half-precision number, by its bits.
_HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float64)


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
    index: Shards,
    vectors: Shards,
    tasks: Sequence[TaskVectors],
    count: int,
    aggregation: Aggregation,
    block_texts: int = BLOCK_TEXTS,
) -> list[Ranking]:
    """Find the true ``count`` best rows of each task, in one pass over the index.

    S = (S_dataset + S_query + S_answer) / 3 (arXiv 2407.05463, section 3); rows have the total order (-score, dataset,
    row). Raises RebaseError if another encoder made the index than the tasks' vectors.
    """
    pools = [_Pool(count) for _ in tasks]
    datasets: dict[str, list[str]] = {}
    scan = partial(_scan, tasks=tasks, count=count, aggregation=aggregation, block_texts=block_texts)
    for name, (names, bounds_by_task) in index.map(dict.fromkeys(index, scan)):
        datasets[name] = names
        for pool, bounds in zip(pools, bounds_by_task, strict=True):
            pool.add(name, bounds)
    candidates = {name: [pool.rows_of(name) for pool in pools] for name in datasets}
    jobs = {
        name: partial(
            _rescore, tasks=tasks, rows=rows, aggregation=aggregation, vectors=readers_of(vectors, datasets[name])
        )
        for name, rows in candidates.items()
        if any(map(len, rows))
    }
    return rank([lines for _, lines in index.map(jobs)], [pool.scanned for pool in pools], count)


@dataclass(frozen=True)
class _Bounds:
    """Rows of a segment with S between ``lower`` and ``upper``, float64 ``[n]``, of ``scanned`` rows in all."""

    rows: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    scanned: int

    def best(self, count: int) -> "_Bounds":
        """The rows that may be among the ``count`` best: their upper bound reaches the ``count``-th lower bound."""
        if len(self.rows) <= count:
            return self
        threshold = np.partition(self.lower, -count)[-count]
        keep = self.upper >= threshold
        return _Bounds(self.rows[keep], self.lower[keep], self.upper[keep], self.scanned)


class _Pool:
    """The rows of the segments scanned so far that may be among the ``count`` best of a task."""

    def __init__(self, count: int) -> None:
        self.scanned = 0
        self._count = count
        self._segments: list[str] = []
        self._segment = np.empty(0, dtype=np.int64)
        self._bounds = _Bounds(np.empty(0, dtype=np.int64), np.empty(0), np.empty(0), 0)

    def add(self, segment: str, bounds: _Bounds) -> None:
        """Add a segment's rows, and drop those that can no longer be among the best."""
        numbers = np.concatenate([self._segment, np.full(len(bounds.rows), len(self._segments))])
        rows, lower, upper = (
            np.concatenate([getattr(self._bounds, name), getattr(bounds, name)]) for name in ("rows", "lower", "upper")
        )
        best = _Bounds(np.arange(len(rows)), lower, upper, 0).best(self._count)
        self._segments.append(segment)
        self._segment = numbers[best.rows]
        self._bounds = _Bounds(rows[best.rows], best.lower, best.upper, 0)
        self.scanned += bounds.scanned

    def rows_of(self, segment: str) -> np.ndarray:
        """The segment's rows that are to be scored exactly, in order."""
        return np.sort(self._bounds.rows[self._segment == self._segments.index(segment)])


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
    table: pa.Table, tasks: Sequence[TaskVectors], count: int, aggregation: Aggregation, block_texts: int = BLOCK_TEXTS
) -> tuple[list[str], list[_Bounds]]:
    """The first stage over one segment: its datasets, and each task's rows that may be among its ``count`` best."""
    from rebase.datastore.kernels import bound_rows

    segment = Segment.from_table(table)
    for task in tasks:
        check_encoder(segment.encoder, task.encoder)
    sides = [side for task in tasks for side in task.sides(aggregation)]
    queries = _Queries.quantize(np.concatenate(sides))
    lower = np.full((len(queries.codes), segment.rows), NO_CELL)
    upper = lower.copy()
    for first, last in _blocks(segment.text_start, block_texts):
        texts = slice(segment.text_start[first], segment.text_start[last])
        rows = slice(segment.dataset_start[first], segment.dataset_start[last])
        row_start = segment.row_start[rows.start : rows.stop + 1]
        cell_text = segment.cell_text[row_start[0] : row_start[-1]] - np.int32(texts.start)
        bound_rows(*queries.bound(segment, texts), cell_text, row_start - row_start[0], rows.start, lower, upper)
    bounds = []
    ends = np.cumsum([0, *map(len, sides)])
    for number, task in enumerate(tasks):
        per_dataset = np.repeat(_similarity(segment.descriptions, task.instruction), np.diff(segment.dataset_start))
        of_sides = [slice(ends[2 * number + side], ends[2 * number + side + 1]) for side in (0, 1)]
        low, high = ((per_dataset + sum(_mean(bound[side]) for side in of_sides)) / 3 for bound in (lower, upper))
        bounds.append(_Bounds(np.arange(segment.rows), low - _SUMMING, high + _SUMMING, segment.rows).best(count))
    return segment.datasets, bounds


def check_encoder(built_with: str, encoder: str) -> None:
    """Raise RebaseError if the index was built with another encoder than the one that embeds the task."""
    if built_with != encoder:
        raise RebaseError(
            f"The index was built with the encoder {built_with!r}, but `encoder` is {encoder!r}. "
            "Set `encoder.model` in globals.yml back, or build the datastore again: "
            "kedro run --pipelines=embed,index."
        )


def _blocks(text_start: np.ndarray, block_texts: int) -> Iterator[tuple[int, int]]:
    """Runs of datasets, as (first, last + 1), of at most ``block_texts`` texts, or of one dataset that has more."""
    first = 0
    while first < len(text_start) - 1:
        last = int(np.searchsorted(text_start, text_start[first] + block_texts, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


def _rescore(
    table: pa.Table,
    tasks: Sequence[TaskVectors],
    rows: Sequence[np.ndarray],
    aggregation: Aggregation,
    vectors: Mapping[str, VectorReader],
) -> list[pd.DataFrame]:
    """The second stage over one segment: the scores of each task's rows, from the exact vectors."""
    segment = Segment.from_table(table)
    return [
        score_exactly(segment, task, task_rows, aggregation, vectors)
        for task, task_rows in zip(tasks, rows, strict=True)
    ]


def score_exactly(
    segment: Segment, task: TaskVectors, rows: np.ndarray, aggregation: Aggregation, vectors: Mapping[str, VectorReader]
) -> pd.DataFrame:
    """Score rows of a segment in double precision: the lines of a ``Ranking``, in the order of ``rows``."""
    sides = task.sides(aggregation)
    queries = np.concatenate(sides)
    cells, owner = _may_be_best(segment, queries, *_cells_of(segment, rows))
    texts, text_of_cell = np.unique(segment.cell_text[cells], return_inverse=True)
    similarity = _exact_similarities(segment, texts, queries, vectors)[:, text_of_cell]
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    filled = owner[starts]
    dataset = np.searchsorted(segment.dataset_start, rows, side="right") - 1
    columns = list(segment.columns.values())
    names = np.array([name for dataset_columns in columns for name in dataset_columns], dtype=object)
    first_name = np.cumsum([0, *map(len, columns)])
    lines = {
        "dataset": pd.Series(np.array(segment.datasets, dtype=object)[dataset], dtype=object),
        "row": rows - segment.dataset_start[dataset],
        "score_dataset": _similarity(segment.descriptions, task.instruction)[dataset],
    }
    for side, part in (("query", similarity[: len(sides[0])]), ("answer", similarity[len(sides[0]) :])):
        score = np.full(len(rows), NO_CELL)
        column = np.full(len(rows), None, dtype=object)
        if len(cells):
            score[filled] = _mean(np.maximum.reduceat(part, starts, axis=1))
            nearest = part.max(axis=0)
            is_best = nearest == np.repeat(np.maximum.reduceat(nearest, starts), np.diff([*starts, len(cells)]))
            best = cells[is_best][np.unique(owner[is_best], return_index=True)[1]]
            column[filled] = names[first_name[dataset[filled]] + segment.cell_column[best]]
        lines |= {f"score_{side}": score, f"{side}_column": pd.Series(column, dtype=object)}
    lines["score"] = (lines["score_dataset"] + lines["score_query"] + lines["score_answer"]) / 3
    return pd.DataFrame(lines)


def _cells_of(segment: Segment, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cells of the rows, and the position in ``rows`` of each cell's row."""
    lengths = segment.row_start[rows + 1] - segment.row_start[rows]
    owner = np.repeat(np.arange(len(rows)), lengths)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return segment.row_start[rows][owner] + within, owner


def _may_be_best(
    segment: Segment, queries: np.ndarray, cells: np.ndarray, owner: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The cells that may be their row's nearest to one of the queries, at least one a row, and their owners."""
    if not len(cells):
        return cells, owner
    lower, upper = _Queries.quantize(queries).bound(segment, segment.cell_text[cells])
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    floor = np.repeat(np.maximum.reduceat(lower, starts, axis=1), np.diff([*starts, len(cells)]), axis=1)
    keep = (upper >= floor).any(axis=0)
    return cells[keep], owner[keep]


def _exact_similarities(
    segment: Segment, texts: np.ndarray, queries: np.ndarray, vectors: Mapping[str, VectorReader]
) -> np.ndarray:
    """Similarities ``[Q, texts]`` from the exact vectors; ``texts`` are sorted numbers of the segment's texts."""
    from rebase.datastore.kernels import widen

    result = np.empty((len(queries), len(texts)))
    cuts = np.searchsorted(texts, segment.text_start)
    for number, name in enumerate(segment.datasets):
        if cuts[number] == cuts[number + 1]:
            continue
        halves = vectors[name]().view(np.uint16)
        for start in range(cuts[number], cuts[number + 1], TEXTS_AT_ONCE):
            part = slice(start, min(start + TEXTS_AT_ONCE, cuts[number + 1]))
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


def readers_of(vectors: Shards, datasets: Iterable[str]) -> dict[str, VectorReader]:
    """A function for each dataset that reads its vectors."""
    return {name: partial(_read_vectors, vectors.reader(name)) for name in datasets}


def _read_vectors(read: Callable[[], pa.Table]) -> np.ndarray:
    return vectors_of(read())


_NO_LINES = pd.DataFrame({"dataset": [], "row": [], "score": []})


def rank(segments: list[list[pd.DataFrame]], scanned: Sequence[int], count: int) -> list[Ranking]:
    """Each task's ``count`` best rows of all segments, in the total order (-score, dataset, row).

    ``segments`` has the scored rows of each segment, by task; ``scanned`` the number of rows scanned for each task.
    """
    rankings = []
    for number, total in enumerate(scanned):
        lines = pd.concat([parts[number] for parts in segments], ignore_index=True) if segments else _NO_LINES
        dataset = pd.factorize(lines["dataset"], sort=True)[0]
        order = np.lexsort((lines["row"], dataset, -lines["score"].to_numpy()))[:count]
        rankings.append(Ranking(lines.iloc[order].reset_index(drop=True), total, len(lines)))
    return rankings
