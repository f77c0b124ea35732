"""Older runs are opened by their version, with the entries that they saw."""

from pathlib import Path

import pytest
from kedro.io import AbstractDataset, DataCatalog, DatasetError, Version

from rebase.datasets.versions import RunCatalog, RunVersionDataset
from rebase.errors import RebaseError

FIRST, SECOND, THIRD = (f"2026-01-0{day}T10.00.00.000Z" for day in (1, 2, 3))
CREATED_BY = dict.fromkeys(("examples", "scores", "judge_scores", "training_log"), "evaluate")


@pytest.fixture
def catalog(tmp_path: Path) -> DataCatalog:
    """Examples of day 1 and 3, scores of all days, a judge on day 2 after the scores, a log without versions."""
    config = {
        name: {"type": "json.JSONDataset", "filepath": str(tmp_path / f"{name}.json"), "versioned": True}
        for name in ("examples", "scores", "judge_scores")
    }
    config |= {
        name: {"type": "json.JSONDataset", "filepath": str(tmp_path / f"{name}.json")}
        for name in ("training_log", "task")
    }
    versions = {"examples": (FIRST, THIRD), "scores": (FIRST, SECOND, THIRD), "judge_scores": ("2026-01-02T12",)}
    for name, dates in versions.items():
        for date in dates:
            DataCatalog.from_config(config, save_version=date).save(name, {"made": date})
    catalog = DataCatalog.from_config(config)
    catalog.save("training_log", {"made": THIRD})
    catalog.save("task", {"made": FIRST})
    return catalog


def loaded(run: RunCatalog) -> dict[str, str]:
    return {name: run.load(name)["made"] for name in (*CREATED_BY, "task") if run.exists(name)}


def test_the_newest_run_is_what_kedro_loads(catalog: DataCatalog) -> None:
    newest = {"examples": THIRD, "scores": THIRD, "judge_scores": "2026-01-02T12", "training_log": THIRD, "task": FIRST}
    assert loaded(RunCatalog(catalog, CREATED_BY)) == newest
    assert loaded(RunCatalog(catalog, CREATED_BY, THIRD)) == newest


def test_an_older_run_has_its_own_entries_or_those_before_it(catalog: DataCatalog) -> None:
    second = RunCatalog(catalog, CREATED_BY, "2026-01-02")
    assert (second.version, second.is_newest) == (SECOND, False)
    assert loaded(second) == {"examples": FIRST, "scores": SECOND, "judge_scores": "2026-01-02T12", "task": FIRST}
    assert second.path("examples").parent.name == FIRST
    assert second.path("examples").is_file()
    assert loaded(RunCatalog(catalog, CREATED_BY, FIRST)) == {"examples": FIRST, "scores": FIRST, "task": FIRST}
    with pytest.raises(RebaseError, match=r"not available for the run 2026-01-02.*only the newest run has it"):
        second.load("training_log")


def test_what_does_not_exist_is_said(catalog: DataCatalog, tmp_path: Path) -> None:
    with pytest.raises(RebaseError, match=r"There is no run '2025'.*newest runs: 2026-01-03"):
        RunCatalog(catalog, CREATED_BY, "2025")
    run = RunCatalog(catalog, CREATED_BY | {"adapter": "train"})
    with pytest.raises(RebaseError, match="not there yet; kedro run --pipelines=train makes it"):
        run.load("adapter")
    with pytest.raises(RebaseError, match="2020-01-01"):
        run.load("examples", "2020-01-01")
    (tmp_path / "training_log.json").write_text("cut off")
    with pytest.raises(RebaseError, match="training_log"):
        run.load("training_log")


def test_a_run_has_its_own_version() -> None:
    config = {"type": "rebase.datasets.RunVersionDataset"}
    version = "2026-11-29T10.00.00.000Z"
    assert AbstractDataset.from_config("run_version", config, save_version=version).load() == version
    assert RunVersionDataset().load() == ""
    assert RunVersionDataset(Version(None, None)).load() == ""
    with pytest.raises(DatasetError, match="read-only"):
        RunVersionDataset().save("another")
