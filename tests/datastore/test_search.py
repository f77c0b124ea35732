from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.datastore.search import NO_CELL, TaskVectors, _scan, score_rows, search_exact
from rebase.datastore.shards import metadata_of
from rebase.datastore.vectors import DESCRIPTION, vectors_of
from rebase.errors import RebaseError
from tests.datastore.stores import embedded, many, stores, unit


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Scan few texts at once, so that most indexes have several blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rebase.datastore.search.BLOCK_TEXTS", 64)
        yield


AGGREGATIONS = st.sampled_from(["max_of_mean", "mean_of_max"])


@st.composite
def searches(draw):
    """A small datastore and tasks. Vectors come from few values, of very different sizes: equal, opposite and zero ones
    are common."""
    dimension = draw(st.integers(1, 6))
    value = st.sampled_from([0.0, 0.0, 1.0, -1.0, 2.0, 1e-3, -1e-3, 6e-8])
    vector = st.lists(value, min_size=dimension, max_size=dimension)

    def vectors(least, most):
        matrix = np.array(draw(st.lists(vector, min_size=least, max_size=most)))
        lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
        return (matrix / np.where(lengths > 0, lengths, 1)).astype(np.float32)

    tables = []
    for _ in range(draw(st.integers(1, 5))):
        texts = vectors(1, 6)
        cell = st.tuples(st.integers(0, len(texts) - 1), st.integers(0, 3))
        rows = draw(st.lists(st.lists(cell, max_size=4), max_size=5))
        tables.append(embedded(texts, rows, draw(st.integers(0, len(texts) - 1))))
    tasks = []
    for _ in range(draw(st.integers(1, 3))):
        examples = draw(st.integers(1, 8))
        tasks.append(TaskVectors(vectors(1, 1)[0], vectors(examples, examples), vectors(examples, examples), "e"))
    return tables, tasks


def brute_force(tables, task, aggregation):
    """Every row's (dataset, row, score), best first: docs/method.md section 4 in float64, cell by cell."""

    def dot(first, second):
        return float(np.vecdot(first.astype(np.float64), second.astype(np.float64)))

    def side(cells, examples):
        if not cells:
            return NO_CELL
        if aggregation == "max_of_mean":
            mean = examples.astype(np.float64).mean(axis=0)
            return max(dot(cell, mean) for cell in cells)
        return reduce(add, [max(dot(cell, example) for cell in cells) for example in examples]) / len(examples)

    scores = []
    for number, table in enumerate(tables):
        vectors, places = vectors_of(table), table["rows"].to_pylist()
        description = next(vectors[text] for text, rows in enumerate(places) if DESCRIPTION in rows)
        for row in range(metadata_of(table)["dataset_rows"]):
            cells = [vectors[text] for text, rows in enumerate(places) if row in rows]
            parts = dot(description, task.instruction), side(cells, task.queries), side(cells, task.answers)
            scores.append((f"d{number:02}", row, (parts[0] + parts[1] + parts[2]) / 3))
    return sorted(scores, key=lambda line: (-line[2], line[0], line[1]))


@given(searches(), AGGREGATIONS, st.integers(1, 30), st.integers(1, 12), st.integers(1, 3))
def test_exact_search_is_brute_force(search, aggregation, count, block, per_segment):
    tables, tasks = search
    index, vectors = stores(tables, per_segment)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rebase.datastore.search.BLOCK_TEXTS", block)
        rankings = search_exact(index, vectors, tasks, count, aggregation)
    for task, ranking in zip(tasks, rankings, strict=True):
        truth = brute_force(tables, task, aggregation)
        lines = ranking.lines
        assert [(line.dataset, line.row, line.score) for line in lines.itertuples()] == truth[:count]
        assert len(lines) == min(count, ranking.scanned)
        assert len(lines) <= ranking.rescored <= ranking.scanned


@given(searches(), AGGREGATIONS, st.integers(1, 12))
def test_the_bounds_hold_for_every_row(search, aggregation, block):
    tables, tasks = search
    index, vectors = stores(tables, len(tables))
    table = index["d00"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rebase.datastore.search.BLOCK_TEXTS", block)
        _, rows, bounds_by_task = _scan(table, tasks, 10**6, aggregation)
    readers = {name: vectors.reader(name) for name in vectors}
    for task, bounds in zip(tasks, bounds_by_task, strict=True):
        lines = score_rows(table, task, bounds["row"], aggregation, readers)
        assert len(lines) == len(bounds) == rows
        assert (bounds["lower"] <= lines["score"]).all()
        assert (lines["score"] <= bounds["upper"]).all()


@pytest.mark.parametrize("aggregation", ["max_of_mean", "mean_of_max"])
def test_few_rows_are_rescored_and_none_is_missed(aggregation):
    tables, task = many()
    index, vectors = stores(tables, 2)
    (ranking,) = search_exact(index, vectors, [task], 50, aggregation)
    assert [tuple(line) for line in ranking.lines[["dataset", "row", "score"]].itertuples(index=False)] == brute_force(
        tables, task, aggregation
    )[:50]
    assert ranking.scanned == 1200
    assert ranking.rescored < 300


def test_several_tasks_in_one_pass_are_each_alone():
    tables, task = many()
    other = replace(task, queries=-task.queries, answers=task.queries[:1])
    index, vectors = stores(tables, 2)
    together = search_exact(index, vectors, [task, other], 20, "mean_of_max")
    for alone, one in zip(together, (task, other), strict=True):
        assert alone.lines.equals(search_exact(index, vectors, [one], 20, "mean_of_max")[0].lines)


def test_equal_rows_tie_exactly_and_stand_in_order():
    # 383 values: a length that leaves a remainder in every vectorized loop.
    random = np.random.default_rng(0)
    texts = np.repeat(unit(random.normal(size=(1, 383))), 301, axis=0)
    tables = [embedded(texts, [[(text, 0)] for text in range(301)], 0)] * 2
    task = TaskVectors(*(unit(random.normal(size=shape)) for shape in ((383,), (3, 383), (3, 383))), "e")
    (ranking,) = search_exact(*stores(tables, 1), [task], 400, "max_of_mean")
    assert ranking.lines["score"].nunique() == 1
    assert ranking.lines["dataset"].tolist() == ["d00"] * 301 + ["d01"] * 99
    assert ranking.lines["row"].tolist() == [*range(301), *range(99)]


def test_max_of_mean_is_the_published_formula():
    """The mean over examples first, then the max over columns: one column must suit all examples."""
    first, second, both = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=np.float32)
    table = embedded([first, second, both], [[(0, 0), (1, 1)], [(2, 0)]], 0)
    task = TaskVectors(first, np.stack([first, second]), np.stack([first, second]), "e")
    published = search_exact(*stores([table], 1), [task], 2, "max_of_mean")[0].lines.sort_values("row")
    np.testing.assert_allclose(published["score_query"], [0.5, 0.7], atol=1e-3)
    np.testing.assert_allclose(published["score"], (1 + 2 * published["score_query"]) / 3, atol=1e-12)
    other = search_exact(*stores([table], 1), [task], 2, "mean_of_max")[0].lines.sort_values("row")
    np.testing.assert_allclose(other["score_query"], [1.0, 0.7], atol=1e-3)


def test_a_row_names_the_columns_that_matched_and_one_without_cells_sinks_to_the_end():
    first, second = np.eye(2, dtype=np.float32)
    table = embedded([first, second], [[], [(0, 0), (1, 1)], []], 0)
    task = TaskVectors(first, first[None], second[None], "e")
    lines = search_exact(*stores([table], 1), [task], 3, "max_of_mean")[0].lines
    assert lines["row"].tolist() == [1, 0, 2]
    assert lines["query_column"].tolist() == ["c0", None, None]
    assert lines["answer_column"].tolist() == ["c1", None, None]
    assert lines["score_query"].tolist() == [1.0, NO_CELL, NO_CELL]


def test_an_index_of_another_encoder_is_rejected():
    tables, task = many(datasets=1)
    with pytest.raises(RebaseError, match="built with the encoder 'e', but `encoder` is 'other'"):
        search_exact(*stores(tables, 1), [replace(task, encoder="other")], 3, "max_of_mean")
