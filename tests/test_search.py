from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.errors import RebaseError
from rebase.search import (
    NO_CELL,
    TaskVectors,
    VectorIndex,
    annoy_candidates,
    best_cell,
    build_forest,
    query_vectors,
    rank_rows,
    score_rows,
)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def make_index(vectors, descriptions, rows, fingerprint="f"):
    """An index of ``rows``: for each dataset a list of rows, each a list of (text, column) cells."""
    cells = [cell for dataset in rows for row in dataset for cell in row]
    return VectorIndex(
        vectors=vectors,
        descriptions=descriptions,
        cell_text=np.array([text for text, _ in cells], dtype=np.int32),
        cell_column=np.array([column for _, column in cells], dtype=np.int32),
        row_start=np.cumsum([0, *(len(row) for dataset in rows for row in dataset)]),
        dataset_start=np.cumsum([0, *map(len, rows)]),
        datasets=[f"d{number}" for number in range(len(rows))],
        columns=[f"c{number}" for number in range(1 + max((column for _, column in cells), default=0))],
        encoder="e",
        fingerprint=fingerprint,
    )


@st.composite
def searches(draw):
    """A small index and a task. Vectors come from few values, so that equal and opposite ones are common."""
    dimension = draw(st.integers(1, 5))
    vector = st.lists(st.integers(-1, 2), min_size=dimension, max_size=dimension).filter(any)

    def vectors(least, most):
        return unit(np.array(draw(st.lists(vector, min_size=least, max_size=most)), dtype=float))

    texts = vectors(1, 10)
    cell = st.tuples(st.integers(0, len(texts) - 1), st.integers(0, 3))
    rows = draw(st.lists(st.lists(st.lists(cell, max_size=4), max_size=5), min_size=1, max_size=4))
    examples = draw(st.integers(1, 8))
    task = TaskVectors(vectors(1, 1)[0], vectors(examples, examples), vectors(examples, examples))
    return make_index(texts, vectors(len(rows), len(rows)), rows), task


def brute_force(index, task, aggregation):
    """The score of every row as docs/method.md section 4 writes it, in float64, cell by cell."""
    vectors = np.asarray(index.vectors, dtype=np.float64)

    def side(row, examples):
        cells = range(index.row_start[row], index.row_start[row + 1])
        similarity = [[float(vectors[index.cell_text[c]] @ e.astype(np.float64)) for e in examples] for c in cells]
        if not similarity:
            return NO_CELL
        if aggregation == "max_of_mean":
            return max(sum(of_cell) / len(of_cell) for of_cell in similarity)
        return sum(max(of_example) for of_example in zip(*similarity, strict=True)) / len(examples)

    return np.array(
        [
            (float(index.descriptions[index.dataset_of(np.array([row]))[0]].astype(np.float64) @ task.instruction)
             + side(row, task.queries) + side(row, task.answers)) / 3
            for row in range(index.rows)
        ]
    )  # fmt: skip


@given(searches(), st.sampled_from(["max_of_mean", "mean_of_max"]), st.integers(1, 12), st.integers(1, 25))
def test_scores_and_ranking_equal_brute_force(search, aggregation, block, count):
    index, task = search
    total = score_rows(index, task, aggregation, block).total
    truth = brute_force(index, task, aggregation)
    np.testing.assert_allclose(total, truth, atol=1e-6)
    ranked = rank_rows(total, count)
    assert len(ranked) == min(count, index.rows)
    # The same scores in the same order; rows may change places only where the truth tells them apart by rounding.
    np.testing.assert_allclose(truth[ranked], np.sort(truth)[::-1][: len(ranked)], atol=1e-6)
    assert all((-total[first], first) < (-total[second], second) for first, second in pairwise(ranked))


@given(searches(), st.sampled_from(["max_of_mean", "mean_of_max"]), st.integers(1, 12))
def test_the_block_size_changes_nothing(search, aggregation, block):
    index, task = search
    np.testing.assert_array_equal(
        score_rows(index, task, aggregation, block).total, score_rows(index, task, aggregation, 10_000).total
    )


@pytest.mark.parametrize("aggregation", ["max_of_mean", "mean_of_max"])
def test_equal_vectors_tie_exactly_and_stand_in_row_order(aggregation):
    # 383: a length and a count that leave a remainder in every vectorised loop.
    random = np.random.default_rng(0)
    vectors = np.repeat(unit(random.normal(size=(1, 383))), 1001, axis=0)
    index = make_index(vectors, unit(random.normal(size=(1, 383))), [[[(text, 0)] for text in range(1001)]])
    task = TaskVectors(*(unit(random.normal(size=shape)) for shape in ((383,), (3, 383), (3, 383))))
    scores = score_rows(index, task, aggregation, 64).total
    assert len(np.unique(scores)) == 1
    assert rank_rows(scores, 10).tolist() == list(range(10))


def test_max_of_mean_is_the_published_formula():
    """The mean over examples first, then the max over columns: one column must suit all examples."""
    first, second, both = unit(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    index = make_index(np.stack([first, second, both]), np.stack([first]), [[[(0, 0), (1, 1)], [(2, 0)]]])
    task = TaskVectors(first, np.stack([first, second]), np.stack([first, second]))
    published = score_rows(index, task, "max_of_mean", 10)
    np.testing.assert_allclose(published.query, [0.5, np.sqrt(0.5)], atol=1e-6)
    np.testing.assert_allclose(published.total, (1 + 2 * published.query) / 3, atol=1e-6)
    other = score_rows(index, task, "mean_of_max", 10)
    np.testing.assert_allclose(other.query, [1.0, np.sqrt(0.5)], atol=1e-6)


def test_a_row_without_cells_sinks_to_the_end():
    vector = unit(np.array([[1.0, 0.0]]))
    index = make_index(vector, vector, [[[], [(0, 0)], []]])
    task = TaskVectors(vector[0], vector, vector)
    assert rank_rows(score_rows(index, task, "max_of_mean", 10).total, 3).tolist() == [1, 0, 2]
    assert best_cell(index, 0, vector) is None
    empty = make_index(vector, vector, [[[], []]])
    assert score_rows(empty, task, "mean_of_max", 10).query.tolist() == [NO_CELL, NO_CELL]


def test_best_cell_names_the_column_that_matched():
    vectors = unit(np.array([[1.0, 0.0], [0.0, 1.0]]))
    index = make_index(vectors, vectors[:1], [[[(0, 0), (1, 1)]]])
    assert best_cell(index, 0, vectors[1:]) == "c1"


def clustered(seed=0, clusters=40, size=50, dimension=24):
    random = np.random.default_rng(seed)
    centres = random.normal(size=(clusters, 1, dimension))
    points = unit((centres + 0.3 * random.normal(size=(clusters, size, dimension))).reshape(-1, dimension))
    rows = [[[(number, 0)] for number in range(len(points))]]
    return make_index(points, points[:1], rows), points


def test_forest_finds_the_neighbours_in_clustered_data():
    index, points = clustered()
    task = TaskVectors(points[0], points[:3], points[:3])
    exact = rank_rows(score_rows(index, task, "max_of_mean", 500).total, 40)
    queries = [query for side in (task.queries, task.answers) for query in query_vectors(side, "max_of_mean")]
    forest = build_forest(index, trees=10, seed=1)
    found = annoy_candidates(index, forest, queries, 800)
    assert np.isin(exact, found).mean() > 0.95
    assert (np.diff(found) > 0).all()


def test_forest_is_the_same_for_the_same_seed():
    index, points = clustered()
    first, second = (build_forest(index, 3, 7).annoy for _ in range(2))
    assert [first.get_nns_by_vector(p, 20) for p in points[:20]] == [
        second.get_nns_by_vector(p, 20) for p in points[:20]
    ]


def test_candidates_are_the_rows_that_hold_a_text():
    vectors = unit(np.array([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0]]))
    index = make_index(vectors, vectors[:1], [[[], [(2, 0)], [(0, 0), (2, 1)]], [[(1, 0)], [], [(0, 0)]]])
    forest = build_forest(index, 5, 0)
    assert annoy_candidates(index, forest, [vectors[0]], 2).tolist() == [2, 3, 5]


def test_a_forest_of_another_index_is_refused():
    index, points = clustered()
    forest = build_forest(index, 1, 0)
    other = make_index(points, points[:1], [[[(0, 0)]]], fingerprint="g")
    with pytest.raises(RebaseError, match="--pipeline=index"):
        annoy_candidates(other, forest, [points[0]], 5)


def test_no_forest_cannot_be_searched():
    index, points = clustered()
    with pytest.raises(RebaseError, match=r"index\.trees"):
        annoy_candidates(index, build_forest(index, 0, 0), [points[0]], 5)
