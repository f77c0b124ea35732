import json
from pathlib import Path

import pytest
from kedro.io import DatasetError
from kedro.io.core import Version

from rebase.datasets.adapter import AdapterDataset
from rebase.datasets.models import StudentDataset
from rebase.records import Adapter


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/model"}')
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return Adapter(folder, "owner/model")


def dataset(tmp_path: Path, save: str | None = None) -> AdapterDataset:
    return AdapterDataset(str(tmp_path / "adapter"), Version(None, save))


def test_a_save_is_a_version_and_the_newest_is_loaded(tmp_path: Path, adapter: Adapter) -> None:
    dataset(tmp_path, "2026-01-01T00.00.00.000Z").save(adapter)
    (adapter.folder / "adapter_model.safetensors").write_bytes(b"better")
    dataset(tmp_path, "2026-01-02T00.00.00.000Z").save(adapter)
    loaded = dataset(tmp_path).load()
    assert loaded.base_model == "owner/model"
    assert loaded.folder == tmp_path / "adapter/2026-01-02T00.00.00.000Z/adapter"
    assert (loaded.folder / "adapter_model.safetensors").read_bytes() == b"better"
    assert dataset(tmp_path).exists()
    assert json.loads(dataset(tmp_path).preview()) == {"base_model_name_or_path": "owner/model"}


def test_no_adapter_yet(tmp_path: Path) -> None:
    assert not dataset(tmp_path).exists()
    with pytest.raises(DatasetError):
        dataset(tmp_path).load()


def test_a_version_cut_short_does_not_count(tmp_path: Path, adapter: Adapter) -> None:
    dataset(tmp_path, "2026-01-01T00.00.00.000Z").save(adapter)
    (tmp_path / "adapter/2026-01-02T00.00.00.000Z/.adapter-half").mkdir(parents=True)
    assert "2026-01-01" in str(dataset(tmp_path).load().folder)


def test_unversioned(tmp_path: Path, adapter: Adapter) -> None:
    plain = AdapterDataset(str(tmp_path / "plain"))
    assert not plain.exists()
    plain.save(adapter)
    plain.save(adapter)
    assert plain.load() == Adapter(tmp_path / "plain", "owner/model")


def test_student_is_a_read_only_handle(tmp_path: Path) -> None:
    entry = StudentDataset("owner/model", str(tmp_path), str(tmp_path))
    assert entry.load().model == "owner/model"
    with pytest.raises(DatasetError, match="read-only"):
        entry.save(entry.load())
