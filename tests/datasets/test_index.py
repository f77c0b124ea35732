import json

import numpy as np
import pytest
from kedro.io import DatasetError

from rebase.datasets import ForestDataset, VectorIndexDataset
from rebase.search import VectorIndex, build_forest


@pytest.fixture
def index():
    vectors = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return VectorIndex(
        vectors=vectors,
        descriptions=vectors[:2],
        cell_text=np.arange(50, dtype=np.int32),
        cell_column=np.zeros(50, dtype=np.int32),
        row_start=np.arange(0, 51, 2),
        dataset_start=np.array([0, 10, 25]),
        datasets=["a", "日本"],
        columns=["text"],
        encoder="e@1",
        fingerprint="f" * 64,
    )


def test_index_comes_back_memory_mapped(tmp_path, index):
    dataset = VectorIndexDataset(str(tmp_path / "index"))
    assert not dataset.exists()
    for _ in range(2):
        dataset.save(index)
    assert dataset.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    loaded = dataset.load()
    assert isinstance(loaded.vectors, np.memmap)
    assert not loaded.vectors.flags.writeable
    for name, value in vars(index).items():
        np.testing.assert_array_equal(getattr(loaded, name), value)
    assert loaded.dataset_of(np.array([0, 9, 10, 24])).tolist() == [0, 0, 1, 1]


def test_an_array_of_objects_is_never_unpickled(tmp_path, index):
    VectorIndexDataset(str(tmp_path)).save(index)
    np.save(tmp_path / "vectors.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DatasetError, match="Python objects"):
        VectorIndexDataset(str(tmp_path)).load()


@pytest.mark.parametrize("trees", [0, 3])
def test_forest_comes_back(tmp_path, index, trees):
    dataset = ForestDataset(str(tmp_path / "forest"))
    assert not dataset.exists()
    forest = build_forest(index, trees, seed=5)
    before = forest.annoy.get_nns_by_vector(index.vectors[0], 10) if trees else None
    for _ in range(2):
        dataset.save(build_forest(index, trees, seed=5))
    loaded = dataset.load()
    assert dataset.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["forest"]
    loaded.check(index)
    assert (loaded.trees, loaded.encoder, loaded.count) == (trees, "e@1", 50)
    assert (loaded.annoy.get_nns_by_vector(index.vectors[0], 10) if trees else None) == before


def test_a_damaged_forest_is_an_error(tmp_path, index):
    dataset = ForestDataset(str(tmp_path))
    dataset.save(build_forest(index, 3, seed=5))
    metadata = tmp_path / "metadata.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"count": 51}))
    with pytest.raises(DatasetError, match="damaged"):
        dataset.load()
    (tmp_path / "forest.ann").unlink()
    with pytest.raises(DatasetError):
        dataset.load()
