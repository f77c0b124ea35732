import pandas as pd
import pytest
from kedro.io import DatasetError, Version

from rebase.datasets import OptionalTableDataset


@pytest.mark.parametrize("version", [None, Version(None, "2026-01-01T00.00.00.000Z")])
def test_a_missing_table_is_empty_and_a_written_one_is_read(tmp_path, version):
    dataset = OptionalTableDataset(filepath=str(tmp_path / "table.parquet"), version=version)
    assert dataset.load().empty
    assert not dataset.exists()
    frame = pd.DataFrame({"a": [1]})
    dataset.save(frame)
    pd.testing.assert_frame_equal(dataset.load(), frame)


def test_a_named_version_must_exist(tmp_path):
    dataset = OptionalTableDataset(filepath=str(tmp_path / "table.parquet"), version=Version("2026", None))
    with pytest.raises(DatasetError):
        dataset.load()
