from dataclasses import replace
from functools import reduce
from itertools import groupby
from operator import add

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.datastore.annoy_index import annoy_index_name, find_near, search_annoy, write_annoy_index
from rebase.datastore.search import NO_CELL, TaskVectors, _scan, score_rows, search_exact
from rebase.datastore.segments import Segment, quantize
from rebase.datastore.shards import Shards, metadata_of, with_metadata
from rebase.datastore.vectors import DESCRIPTION, vectors_of
from rebase.errors import RebaseError
from rebase.pipelines.index.nodes import build_segment


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Scan few texts at once, so that most indexes have several blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rebase.datastore.search.BLOCK_TEXTS", 64)
        yield


AGGREGATIONS = st.sampled_from(["max_of_mean", "mean_of_max"])


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


@given(st.integers(1, 700), st.integers(0, 2**32 - 1), st.floats(-12, 4))
def test_codes_are_within_their_error(dimension, seed, exponent):
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(20, dimension)) * 10.0 ** (exponent * random.random((20, dimension)))
    vectors[0] = 0
    vectors[1, 1:] = 0
    codes, scales, errors, reach = quantize(vectors)
    stands_for = scales[:, None].astype(np.float64) * codes
    assert (np.linalg.norm(vectors - stands_for, axis=1) <= errors).all()
    assert np.linalg.norm(stands_for, axis=1).max() <= reach


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


def test_a_segment_is_the_same_from_its_table():
    tables, _ = many(datasets=2)
    segment = build_segment({"a": tables[0], "b": tables[1]})
    again = Segment.from_table(segment.to_table())
    for name, value in vars(segment).items():
        np.testing.assert_array_equal(value, getattr(again, name)) if isinstance(value, np.ndarray) else None
    assert (again.columns, again.encoder, again.datasets) == (segment.columns, "e", ["a", "b"])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A datastore with Annoy indexes."""
    tables, task = many()
    index, vectors = stores(tables, 2)
    folder = tmp_path_factory.mktemp("annoy_index")
    paths = {}
    for number, name in enumerate(index):
        segment = Segment.from_table(index[name])
        paths[annoy_index_name(index, name)] = folder / str(number)
        readers = [vectors_of(vectors[dataset]) for dataset in segment.datasets]
        write_annoy_index(segment, readers, 10, 1, folder / str(number))
    return index, in_memory(paths), vectors, task


def test_annoy_finds_the_same_rows_where_it_looks_far_enough(built):
    index, annoy_index, vectors, task = built
    (exact,) = search_exact(index, vectors, [task], 30, "max_of_mean")
    near = search_annoy(index, annoy_index, vectors, task, 30, "max_of_mean", 2000)
    assert near.lines.equals(exact.lines)
    few = search_annoy(index, annoy_index, vectors, task, 30, "mean_of_max", 5)
    assert 0 < few.scanned < near.scanned
    assert few.lines["score"].is_monotonic_decreasing


def test_nearest_texts_are_found_in_all_segments(built):
    index, annoy_index, vectors, _ = built
    query = vectors_of(vectors["d03"])[40].astype(np.float32)
    near = find_near(index, annoy_index, query[None], 5)
    assert len(near) == 5
    assert near["similarity"].is_monotonic_decreasing
    best = near.iloc[0]
    assert (best["dataset"], best["position"], best["segment"]) == ("d03", 40, "d02")
    assert best["similarity"] == pytest.approx(1, abs=1e-3)


def test_an_annoy_index_is_the_same_for_the_same_seed(built, tmp_path):
    index, annoy_index, vectors, _ = built
    segment = Segment.from_table(index["d00"])
    readers = [vectors_of(vectors[name]) for name in segment.datasets]
    write_annoy_index(segment, readers, 10, 1, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == annoy_index[annoy_index_name(index, "d00")].read_bytes()


def test_an_annoy_index_of_another_index_or_none_is_an_error(built):
    index, annoy_index, vectors, task = built
    other = Shards(dict(index.fingerprints) | {"d02": "g"}, index.read)
    for wrong in (other, index):
        with pytest.raises(RebaseError, match=r"index\.trees"):
            search_annoy(wrong, annoy_index if wrong is other else in_memory({}), vectors, task, 3, "max_of_mean", 5)
