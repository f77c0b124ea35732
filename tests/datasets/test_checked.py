"""Damage to files of the catalog is noticed where they are read."""

import fsspec
import pandas as pd
import plotly.graph_objects as go
import pytest
from kedro.io import DatasetError
from kedro.io.core import Version
from kedro_datasets.partitions import PartitionedDataset

from rebase.datasets import (
    CheckedCSV,
    CheckedJSON,
    CheckedParquet,
    CheckedPlot,
    CheckedText,
    MetricsDataset,
    OptionalTableDataset,
)
from rebase.datasets.checked import Checked
from rebase.errors import RebaseError
from tests.damage import damage_file, every_damage, turn

TABLE = pd.DataFrame({"example_id": ["a", "b"], "answer": ["one", "two"]})
KINDS = [
    (CheckedParquet, "examples.parquet", TABLE),
    (OptionalTableDataset, "examples.parquet", TABLE),
    (CheckedCSV, "comparison.csv", TABLE),
    (CheckedJSON, "train_summary.json", {"stage": "train", "kept": 2}),
    (MetricsDataset, "scores.json", {"task": "t", "systems": {}}),
    (CheckedPlot, "loss_plot.json", go.Figure()),
    (CheckedText, "report.html", "<p>all is well</p>"),
]


@every_damage
@pytest.mark.parametrize(("kind", "name", "content"), KINDS, ids=[kind.__name__ for kind, *_ in KINDS])
@pytest.mark.parametrize("version", [None, "2026-01-01T00.00.00.000Z"])
def test_damage_is_one_message_that_names_the_file(tmp_path, kind, name, content, version, damage):
    entry = kind(filepath=str(tmp_path / name), version=version and Version(None, version))
    entry.save(content)
    assert type(entry.load()) is type(content)
    assert entry.problem() == ""
    file = tmp_path / name / version / name if version else tmp_path / name
    damage_file(file, damage)
    with pytest.raises(RebaseError) as error:
        entry.load()
    assert str(error.value) == entry.problem()
    assert str(error.value).startswith(f"{file} is damaged: its content is not what was written.")
    assert entry.exists()


@pytest.mark.parametrize("kind", [kind for kind, *_ in KINDS], ids=[kind.__name__ for kind, *_ in KINDS])
def test_what_this_relies_on_in_kedro_datasets(tmp_path, kind):
    """The file system, the paths of a version, and the function that Kedro wraps ``save`` with."""
    entry = kind(filepath=str(tmp_path / "a"), version=Version("1", "2"))
    assert entry._protocol == "file"
    assert entry._fs.exists(str(tmp_path))
    assert entry._version == Version("1", "2")
    paths = entry._get_load_path(), entry._get_versioned_path("1"), entry._get_save_path()
    assert [*map(str, paths)] == [f"{tmp_path}/a/{version}/a" for version in (1, 1, 2)]
    assert str(kind(filepath=str(tmp_path / "a"))._get_load_path()) == f"{tmp_path}/a"
    mixed_into = kind.__mro__[kind.__mro__.index(Checked) + 1]
    assert callable(mixed_into.save.__wrapped__)


def test_the_message_names_the_pipeline_or_else_the_doctor(tmp_path):
    for name, words in (("predictions", "kedro run --pipelines=evaluate"), ("own", "`kedro doctor` says what to run")):
        entry = CheckedParquet(filepath=str(tmp_path / f"{name}.parquet"))
        entry.save(TABLE)
        (tmp_path / f"{name}.parquet").write_bytes(b"")
        assert words in entry.problem()


@pytest.mark.parametrize("content", [b"", b"PAR1", b"{"])
def test_a_file_without_a_checksum_is_read_or_one_message(tmp_path, content):
    """Files of earlier versions have none."""
    file = tmp_path / "examples.parquet"
    TABLE.to_parquet(file)
    pd.testing.assert_frame_equal(CheckedParquet(filepath=str(file)).load(), TABLE)
    file.write_bytes(content)
    with pytest.raises(RebaseError, match=r"examples\.parquet is damaged: .*--pipelines=transform"):
        CheckedParquet(filepath=str(file)).load()


def test_a_missing_file_is_not_damaged(tmp_path):
    with pytest.raises(DatasetError) as error:
        CheckedJSON(filepath=str(tmp_path / "none.json")).load()
    assert "damaged" not in str(error.value)


def test_an_interrupted_write_is_noticed(tmp_path):
    file = tmp_path / "report.html"
    entry = CheckedText(filepath=str(file))

    with pytest.raises(DatasetError):
        entry.save(5)  # type: ignore[arg-type]
    file.write_text("<p>half")
    assert entry.problem().startswith(f"{file} is damaged: its writing was interrupted")
    entry.save("<p>whole</p>")
    assert entry.load() == "<p>whole</p>"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".report.html.xxh3", "report.html"]


def test_a_damaged_file_is_renamed_before_it_is_overwritten(tmp_path, caplog):
    file = tmp_path / "judgments.parquet"
    entry = CheckedParquet(filepath=str(file))
    entry.save(TABLE)
    damaged = file.read_bytes()[:-20]
    file.write_bytes(damaged)
    entry.save(TABLE)
    [kept] = tmp_path.glob("judgments.parquet.damaged-*")
    assert kept.read_bytes() == damaged
    assert f"{file} was damaged and is now {kept}" in caplog.text
    pd.testing.assert_frame_equal(entry.load(), TABLE)


def test_checksums_are_no_partitions_and_no_versions(tmp_path):
    entry = PartitionedDataset(
        path=str(tmp_path / "scores"), dataset="rebase.datasets.CheckedParquet", filename_suffix=".parquet"
    )
    entry.save({"a": TABLE, "b": TABLE})
    assert set(entry.load()) == {"a", "b"}
    versioned = CheckedParquet(filepath=str(tmp_path / "t.parquet"), version=Version(None, None))
    versioned.save(TABLE)
    assert len(versioned.list_versions()) == 1


def test_a_file_in_another_file_system_has_a_checksum_too():
    entry = CheckedParquet(filepath="memory://folder/cards.parquet")
    entry.save(TABLE)
    pd.testing.assert_frame_equal(entry.load(), TABLE)
    fs = fsspec.filesystem("memory")
    [path] = [path for path in fs.find("/") if path.endswith("cards.parquet")]
    fs.pipe_file(path, turn(fs.cat_file(path)))
    with pytest.raises(RebaseError, match=r"cards\.parquet is damaged"):
        entry.load()


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
