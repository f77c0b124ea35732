"""``kedro doctor`` on a catalog of a few files."""

import sqlite3
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from kedro.io import DataCatalog, MemoryDataset, Version
from kedro.pipeline import Node, Pipeline

from rebase.datasets import CheckedJSON, CheckedParquet, ShardStore
from rebase.datastore.shards import Shard, ShardPlan, Shards
from rebase.reporting.doctor import Finding, examine, render
from rebase.student.handle import Student


def plan(rows: Shards) -> ShardPlan:
    """A store of one shard for each of rows."""
    return ShardPlan([Shard(name, f * 2, lambda _: pa.table({"v": [1]})) for name, f in rows.fingerprints.items()])


def save_rows(catalog: DataCatalog, **fingerprints: str) -> None:
    table = pa.table({"row": ["text"]})
    catalog["rows"].save(ShardPlan([Shard(name, text, lambda _: table) for name, text in fingerprints.items()]))


@pytest.fixture
def catalog(tmp_path: Path) -> DataCatalog:
    student = Student("owner/model", None, tmp_path / "base", tmp_path / "training")
    catalog = DataCatalog(
        {
            "rows": ShardStore(str(tmp_path / "rows")),
            "vectors": ShardStore(str(tmp_path / "vectors")),
            "examples": CheckedParquet(filepath=str(tmp_path / "examples.parquet")),
            "training_set": CheckedParquet(filepath=str(tmp_path / "training_set.parquet")),
            "train_summary": CheckedJSON(filepath=str(tmp_path / "train_summary.json")),
            "student": MemoryDataset(student, copy_mode="assign"),
            "teacher": MemoryDataset(),
        }
    )
    catalog["teacher"].filepath = tmp_path / "responses.sqlite"
    save_rows(catalog, a="1", b="2")
    catalog["vectors"].save(plan(catalog["rows"].load()))
    for name in ("examples", "training_set"):
        catalog[name].save(pd.DataFrame({"answer": ["yes"]}))
    return catalog


def nothing(*inputs: Any) -> None:
    """A node's function that is never run."""


PIPELINES = {
    "ingest": Pipeline([Node(nothing, None, "rows", name="ingest")]),
    "embed": Pipeline([Node(plan, "rows", "vectors", name="embed")]),
    "transform": Pipeline([Node(nothing, "vectors", "examples", name="transform")]),
    "train": Pipeline([Node(nothing, "examples", ["training_set", "train_summary"], name="train")]),
}
PIPELINES["rebase"] = sum(PIPELINES.values(), Pipeline([]))


def findings(catalog: DataCatalog, **origins: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {finding.name: (finding.state, finding.advice) for finding in examine(catalog, origins, PIPELINES)}


def test_what_does_not_exist_is_left_out_and_the_rest_is_whole(catalog: DataCatalog) -> None:
    names = ("rows", "vectors", "examples", "training_set")
    assert findings(catalog) == dict.fromkeys(names, ("whole", ""))


def test_all_versions_of_a_file_are_examined(catalog: DataCatalog, tmp_path: Path) -> None:
    path = tmp_path / "versioned" / "examples.parquet"
    for version in ("1", "2"):
        entry = CheckedParquet(filepath=str(path), version=Version(None, version))
        entry.save(pd.DataFrame({"answer": ["yes"]}))
    file = path / "1" / "examples.parquet"
    file.write_bytes(b"PAR1")
    catalog["examples"] = CheckedParquet(filepath=str(path), version=Version(None, None))
    state, advice = findings(catalog)["examples"]
    assert state == "damaged"
    assert advice.startswith(f"{file} is damaged")


def test_a_file_that_was_made_from_something_else_is_stale(catalog: DataCatalog) -> None:
    examples, training_set = ({"content": "new", "made_from": made_from} for made_from in ({}, {"examples": "old"}))
    advice = "what it was made from has changed: kedro run --pipelines=train"
    states = findings(catalog, examples=examples, training_set=training_set)
    assert states["training_set"] == ("stale", advice)
    assert states["examples"] == ("whole", "")


def test_a_store_of_other_data_is_stale(catalog: DataCatalog) -> None:
    save_rows(catalog, a="1", c="3")
    state, advice = findings(catalog)["vectors"]
    assert (state, advice) == ("stale", "1 shards changed, 1 no longer exist: kedro run --pipelines=embed")


def test_damage_is_found_in_stores_files_training_answers_and_the_response_cache(
    catalog: DataCatalog, tmp_path: Path
) -> None:
    (tmp_path / "rows" / "manifest.json").write_text("{")
    next((tmp_path / "vectors").glob("a.*")).write_bytes(b"")
    (tmp_path / "examples.parquet").write_bytes(b"PAR1")
    (tmp_path / "training" / "f" / "result").mkdir(parents=True)
    (tmp_path / "training" / "f" / "result" / ".checksums.json").write_text('{"log.parquet": "0"}')
    (tmp_path / "training" / "answers").mkdir()
    (tmp_path / "training" / "answers" / "0123456789.jsonl").write_text("\n5")
    (tmp_path / "base" / "model").mkdir(parents=True)
    (tmp_path / "base" / "model" / ".checksums.json").write_text("")
    with sqlite3.connect(tmp_path / "responses.sqlite") as connection:
        connection.execute("CREATE TABLE responses (text)")
    assert findings(catalog)["response cache"] == ("whole", "")
    (tmp_path / "responses.sqlite").write_bytes(b"no database, but longer than a header of SQLite" * 10)
    damaged = {name for name, (state, _) in findings(catalog).items() if state == "damaged"}
    others = {"training/f", "answers/01234567", "weights/model", "response cache"}
    assert damaged == {"rows", "vectors", "examples", *others}


def test_the_list_fits_80_columns_and_ends_with_the_counts() -> None:
    path = "data/02_intermediate/sample"
    lines = render(
        [
            *(Finding(f"entry_{number}", "whole") for number in range(30)),
            Finding("examples", "stale", "what it was made from has changed: kedro run --pipelines=transform"),
            Finding("cards", "damaged", f"{Path.cwd()}/{path} is damaged: its content is not what was written. " * 2),
        ]
    ).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("whole    entry_0, entry_1")
    assert "stale    examples: what it was made from has changed: kedro run" in lines
    assert any(line.startswith(f"damaged  cards: {path} is damaged: its content is not what") for line in lines)
    assert lines[-1] == "30 whole, 1 stale, 1 damaged"
