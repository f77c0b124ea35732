import json
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from kedro.io import DataCatalog
from kedro_datasets.partitions import PartitionedDataset
from rich.console import Console

from rebase.datasets.versions import load_all_versions
from rebase.reporting.runs import RunScores, find_runs, git_commit, record_run, runs_tables, summaries_of
from tests.tiny import train_parameters

CELL = {"value": 40.0, "low": 30.0, "high": 50.0}
SCORES: dict[str, Any] = {"task": "t", "n": 60, "systems": {"student": {"f1": CELL}, "expert": {"f1": CELL}}}
SUMMARIES = [
    {"stage": "index", "in": 5, "kept": 5, "rejected": {}, "encoder": "mini@1"},
    {"stage": "transform", "in": 5, "kept": 4, "rejected": {"x": 1}, "teacher": "anthropic/m", "seconds": 2.5},
    {"stage": "train", "in": 4, "kept": 4, "rejected": {}, "base_model": "smol"},
]
USAGE = pd.DataFrame(
    [{"stage": "total", "responses": 4, "cached": 1, "input_tokens": 9, "output_tokens": 3, "dollars": 0.25,
      "used_dollars": 0.3, "p50_seconds": None}]
)  # fmt: skip


def record(**parameters: Any) -> dict[str, Any]:
    return record_run({"train": train_parameters(), **parameters}, SCORES, USAGE, *SUMMARIES)


def test_a_record_says_what_made_the_run() -> None:
    made = record()
    assert made["models"] == {"teacher": "anthropic/m", "student": "smol", "encoder": "mini@1"}
    assert made["parameters"]["train"]["lora"] == {"rank": 2, "alpha": 4, "dropout": 0.1}
    assert made["counts"]["transform"] == {"in": 5, "kept": 4, "rejected": {"x": 1}}
    assert made["seconds"] == {"transform": 2.5}
    assert (made["dollars"], made["used_dollars"]) == (0.25, 0.3)
    assert set(made["versions"]) >= {"git", "python", "rebase", "torch", "transformers", "trl", "peft"}
    assert json.loads(json.dumps(made)) == made


def test_no_secret_gets_into_a_record() -> None:
    made = json.dumps(
        record(
            **{
                "teacher.api_key": "s3cret",
                "hub": {"token": "s3cret", "Password": "s3cret", "credentials": {"x": "s3cret"}},
                "base_url": "https://me:s3cret@host/v1?key=s3cret",
                "note": "sk-ant-s3cret-0123456789abcdef",
                "train2": {"max_tokens": 7, "question": "Where?"},
            }
        )
    )
    assert "s3cret" not in made
    assert "https://host/v1" in made
    assert '"max_tokens": 7' in made
    assert '"Where?"' in made


def test_a_record_of_an_old_run_lacks_what_it_lacks() -> None:
    made = record_run({}, SCORES, USAGE.head(0))
    assert made["models"] == {"teacher": None, "student": None, "encoder": None}
    assert made["dollars"] is None


def test_the_commit_is_that_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None


def put(folder: Path, name: str, version: str, content: object) -> None:
    (folder / "t" / name / version).mkdir(parents=True)
    (folder / "t" / name / version / name).write_text(content if isinstance(content, str) else json.dumps(content))


def read_runs(folder: Path) -> list[RunScores]:
    """The runs of the only task, from files as Kedro writes them."""
    catalog = DataCatalog(
        {
            name: PartitionedDataset(path=str(folder), dataset="json.JSONDataset", filename_suffix=f"/{file}.json")
            for name, file in (("all_scores", "scores"), ("all_run_records", "run_record"))
        }
    )
    scores, records = (load_all_versions(catalog, name, "t") for name in ("all_scores", "all_run_records"))
    assert load_all_versions(catalog, "all_scores", "another") == {}
    return find_runs(scores.get("t", {}), records.get("t", {}))


def say(folder: Path) -> str:
    console = Console(file=StringIO(), width=160)
    console.print(runs_tables("t", read_runs(folder)))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_runs_are_compared_by_what_differs(tmp_path: Path) -> None:
    for version, rate in (("2026-01-01T10.00.00.000Z", 1e-3), ("2026-01-02T10.00.00.000Z", 3e-4)):
        put(tmp_path, "scores.json", version, SCORES | {"verdict": "The expert answers 11 more items of 100."})
        made = record(train=train_parameters(learning_rate=rate))
        put(tmp_path, "run_record.json", version, made)
    assert [run.version[:10] for run in read_runs(tmp_path)] == ["2026-01-02", "2026-01-01"]
    output = say(tmp_path)
    assert output.index("train.learning_rate = 0.0003") < output.index("train.learning_rate = 0.001")
    assert "train.epochs" not in output
    assert "rebase · task t · f1" in output
    assert output.count("2026-01-02T10.00.00  ") == 4, "scores, verdicts, costs and differences"
    assert "The expert answers 11 more items" in output
    assert "40.0 [30, 50]   40.0 [30, 50]" in output
    assert "$0.2500" in output
    assert "student smol" in output


def test_a_killed_run_takes_the_record_that_was_made_later(tmp_path: Path) -> None:
    put(tmp_path, "scores.json", "2026-01-01", SCORES)
    put(tmp_path, "run_record.json", "2026-01-03", record())
    put(tmp_path, "scores.json", "2026-01-02", SCORES | {"n": 7})
    by_version = {run.version: run for run in read_runs(tmp_path)}
    adopted = by_version["2026-01-01"].record
    assert adopted is not None
    assert adopted["counts"]["train"]["kept"] == 4
    assert not adopted.keys() & {"parameters", "versions", "machine"}, "they are of the later session"
    assert by_version["2026-01-02"].record is None
    output = say(tmp_path)
    assert "no record: made without the report pipeline" in output
    assert "parameters unknown: the report was made later" in output
    assert "train." not in output


def test_half_written_files_and_empty_folders_are_no_runs(tmp_path: Path) -> None:
    assert read_runs(tmp_path) == []
    put(tmp_path, "scores.json", "2026-01-01", "{")
    put(tmp_path, "scores.json", "2026-01-02", "[]")
    put(tmp_path, "scores.json", "2026-01-03", {})
    put(tmp_path, "run_record.json", "2026-01-03", {})
    [run] = read_runs(tmp_path)
    assert run.version == "2026-01-03"
    assert "2026-01-03" in say(tmp_path)


def test_a_record_gives_the_summaries_of_an_older_run() -> None:
    summaries = summaries_of(record())
    assert summaries["transform_summary"] == {
        "stage": "transform", "in": 5, "kept": 4, "rejected": {"x": 1}, "seconds": 2.5
    }  # fmt: skip
    assert summaries["train_summary"]["base_model"] == "smol"
    assert summaries_of({}) == {}


@pytest.mark.parametrize("systems", [[], None, {"student": 5}, {"student": {"f1": 12.5}}, {"student": {"f1": {}}}])
def test_scores_of_another_shape_are_left_out(systems: Any) -> None:
    content = {"systems": systems}
    cell = {"value": 1.0, "low": 0.0, "high": 2.0}
    runs = find_runs({"2026-01-01": content, "2026-01-02": {"systems": {"student": {"f1": cell}}}}, {})
    assert [run.version for run in runs] == ["2026-01-02"]
