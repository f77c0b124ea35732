import json
from pathlib import Path

import pytest
from kedro.framework.project import pipelines
from kedro.framework.startup import bootstrap_project
from kedro.io import DataCatalog, MemoryDataset, Version
from kedro.pipeline import Node, Pipeline
from kedro.runner import SequentialRunner
from kedro_datasets.pandas import ParquetDataset

from rebase.datasets import EvaluationRowsDataset, TaskDataset, inputs
from rebase.hooks import RunReporter
from rebase.pipelines import prepare

ROOT = Path(__file__).parents[2]
TASKS = str(ROOT / "data" / "01_raw" / "tasks")


@pytest.fixture
def reads(monkeypatch):
    """The locations of the evaluation sets that were read."""
    locations = []

    def read(task, location, *others):
        locations.append(location)
        return original(task, location, *others)

    original = inputs.read_source_rows
    monkeypatch.setattr(inputs, "read_source_rows", read)
    return locations


def test_a_run_reads_the_evaluation_set_once(tmp_path, reads):
    source = tmp_path / "own.jsonl"
    lines = [{"context": "A hen.", "question": f"Which {n}?", "answers": ["hen"] if n < 3 else []} for n in range(4)]
    source.write_text("\n".join(map(json.dumps, lines)))
    entry = ParquetDataset(filepath=str(tmp_path / "items.parquet"), version=Version(None, "2026-01-01"))
    catalog = DataCatalog(
        {
            "task": TaskDataset(TASKS, "reading_qa"),
            "evaluation_rows": EvaluationRowsDataset(TASKS, "reading_qa", source=str(source)),
            "evaluation_items": entry,
            "first": MemoryDataset(),
            "second": MemoryDataset(),
        }
    )
    readers = [Pipeline([Node(len, "evaluation_items", name, name=name)]) for name in ("first", "second")]
    pipeline = sum((prepare.create_pipeline() + reader for reader in readers), Pipeline([]))
    RunReporter().before_pipeline_run({"only_missing_outputs": False}, pipeline, catalog)
    SequentialRunner().run(pipeline, catalog)
    assert reads == [str(source)]
    assert (catalog.load("first"), catalog.load("second")) == (3, 3)
    origin = entry.load().attrs
    assert origin["dataset"] == "own.jsonl"
    assert len(origin["content_hash"]) == 64
    assert origin["rejected"] == {"no_gold": 1}


def test_each_pipeline_that_reads_evaluation_items_prepares_them():
    bootstrap_project(ROOT)
    pipelines.set_requested(None)
    unprepared = [name for name, pipeline in pipelines.items() if "evaluation_items" in pipeline.inputs()]
    assert unprepared == []
