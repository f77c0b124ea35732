"""Evaluate, run as a pipeline over a tiny student."""

import json
from pathlib import Path

import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner
from kedro_datasets.json import JSONDataset

from rebase.errors import RebaseError
from rebase.pipelines import prepare
from rebase.pipelines.evaluate import create_pipeline
from rebase.pipelines.evaluate.nodes import predict
from rebase.records import ITEM_SCORE_COLUMNS, Task
from rebase.student.handle import Student
from rebase.student.training import train_adapter
from rebase.tasks.evaluation_items import remove_shown_items
from rebase.tasks.verdict import LENIENT
from tests.tiny import evaluate_parameters, evaluation_items, make_student, train_parameters, training_set


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return make_student(tmp_path_factory.mktemp("student"))


def test_an_adapter_and_the_student_get_scores(student: Student, reading_task: Task, tmp_path: Path) -> None:
    adapter, _, _ = train_adapter(student, training_set(8), train_parameters())
    catalog = DataCatalog(
        {
            "task": MemoryDataset(reading_task),
            "student": MemoryDataset(student, copy_mode="assign"),
            "adapter": MemoryDataset(adapter),
            "evaluation_items": MemoryDataset(evaluation_items(7)),
            "scores": JSONDataset(filepath=str(tmp_path / "scores.json")),
            "run_version": MemoryDataset("2026-11-29T10.00.00.000Z"),
            "params:evaluate": MemoryDataset(evaluate_parameters(limit=5)),
        }
    )
    outputs = SequentialRunner().run(create_pipeline() - prepare.create_pipeline(), catalog)
    scores = catalog.load("scores")
    assert (scores["run"], scores["n"]) == ("2026-11-29T10.00.00.000Z", 5)
    item_scores = outputs["item_scores"].load()["tiny_reading"]
    assert list(item_scores) == [*ITEM_SCORE_COLUMNS, "exact_match", "f1", LENIENT]
    assert len(item_scores) == 3 * 5
    assert [bar.name for bar in outputs["scores_plot"].load().data] == ["student", "student_few_shot", "expert"]


def test_items_that_the_prompt_shows_are_left_out(student: Student, reading_task: Task) -> None:
    items = evaluation_items(3)
    items.loc[1, "fields"] = json.dumps({**reading_task.examples[0], "question": "What does it catch?"})
    with pytest.raises(RebaseError, match="show every evaluation item"):
        predict(reading_task, items.iloc[[1]], student, None, evaluate_parameters())
    kept, shown = remove_shown_items(reading_task, items)
    assert (kept["item_id"].to_list(), shown["item_id"].to_list()) == (["i0", "i2"], ["i1"])
