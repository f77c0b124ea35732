import numpy as np
import pytest

from rebase.datastore.annoy_index import annoy_index_name, find_near, search_annoy, write_annoy_index
from rebase.datastore.search import search_exact
from rebase.datastore.segments import Segment
from rebase.datastore.shards import Shards
from rebase.datastore.vectors import vectors_of
from rebase.errors import RebaseError
from tests.datastore.stores import in_memory, many, stores


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
