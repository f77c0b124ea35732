import pytest
from kedro.io import AbstractDataset, DatasetError, Version

from rebase.datasets import RunVersionDataset


def test_a_run_has_its_own_version() -> None:
    config = {"type": "rebase.datasets.RunVersionDataset"}
    version = "2026-11-29T10.00.00.000Z"
    assert AbstractDataset.from_config("run_version", config, save_version=version).load() == version
    assert RunVersionDataset().load() == ""
    assert RunVersionDataset(Version(None, None)).load() == ""
    with pytest.raises(DatasetError, match="read-only"):
        RunVersionDataset().save("another")
