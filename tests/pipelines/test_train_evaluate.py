"""Train and evaluate, run as pipelines over a tiny student."""

import json
from pathlib import Path

import pandas as pd
import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner

from rebase.datasets.adapter import AdapterDataset
from rebase.errors import RebaseError
from rebase.pipelines.evaluate import create_pipeline as create_evaluate
from rebase.pipelines.evaluate.nodes import score_predictions
from rebase.pipelines.train import create_pipeline as create_train
from rebase.pipelines.train.nodes import format_training_set
from rebase.records import Task
from rebase.student.handle import Student
from tests.tiny import evaluate_parameters, make_student, reasoned_examples, train_parameters


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return make_student(tmp_path_factory.mktemp("student"))


def evaluation_set(count: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(count)],
            "fields": "{}",
            "query": [f"The owl sleeps in barn {n}.\n\nQuestion: Where?" for n in range(count)],
            "answers": [json.dumps([f"in barn {n}", f"barn {n}"]) for n in range(count)],
        }
    )


def test_from_examples_to_report(student: Student, reading_task: Task, tmp_path: Path) -> None:
    examples = reasoned_examples(9)
    summary = {"in": 9, "kept": 9, "refused": {}}
    stages = ("ingest", "embed", "index", "retrieve", "transform", "cot")
    catalog = DataCatalog(
        {
            "task": MemoryDataset(reading_task),
            "student": MemoryDataset(student, copy_mode="assign"),
            "reasoned_examples": MemoryDataset(examples),
            "evaluation_set": MemoryDataset(evaluation_set(7)),
            "retrieved": MemoryDataset(examples.assign(row='{"title": "Birds"}')),
            "adapter": AdapterDataset(str(tmp_path / "adapter")),
            "params:train": MemoryDataset(train_parameters()),
            "params:evaluate": MemoryDataset(evaluate_parameters(limit=5)),
            **{f"{stage}_summary": MemoryDataset({"stage": stage, **summary}) for stage in stages},
        }
    )
    outputs = SequentialRunner().run(create_train() + create_evaluate(), catalog)
    made = {name: dataset.load() for name, dataset in outputs.items()}

    adapter = catalog.load("adapter")
    card = (adapter.folder / "README.md").read_text()
    assert "| birds | cc0-1.0 | 4 |" in card
    assert "| foxes | cc0-1.0 | 5 |" in card
    assert str(tmp_path) not in card

    assert made["training_log"]["step"].tolist() == [1, 2, 3]
    assert "5 items" in made["report"]
    assert [bar.name for bar in made["scores_plot"].data] == ["student", "expert"]


@pytest.fixture
def generations() -> pd.DataFrame:
    lines = [
        ("student", "a", "p", "somewhere", '["in barn 1", "barn 1"]'),
        ("student", "b", "p", "in barn 2", '["in barn 2"]'),
        ("expert", "a", "p", "Barn 1.\nIt sleeps.", '["in barn 1", "barn 1"]'),
        ("expert", "b", "p", "In barn 2", '["in barn 2"]'),
    ]
    return pd.DataFrame(lines, columns=["system", "item_id", "prompt", "raw", "answers"])


def test_scores_and_paired_difference(generations: pd.DataFrame, reading_task: Task) -> None:
    predictions, scores = score_predictions(reading_task, generations, evaluate_parameters())
    assert list(predictions["extracted"]) == ["somewhere", "in barn 2", "Barn 1.", "In barn 2"]
    assert list(predictions["exact_match"]) == [0, 1, 1, 1]
    assert scores["systems"]["student"]["exact_match"]["value"] == 50
    assert scores["systems"]["expert"]["exact_match"] == {"value": 100, "low": 100, "high": 100}
    assert scores["differences"]["expert - student"]["exact_match"]["value"] == 50
    json.dumps(scores)


def test_training_set_keeps_order_and_rationales(student: Student, reading_task: Task) -> None:
    both = pd.concat([reasoned_examples(2, "Because."), reasoned_examples(1)], ignore_index=True)
    frame = format_training_set(reading_task, both, student, train_parameters(target="rationale_then_answer"))
    assert list(frame.columns) == ["example_id", "prompt", "completion"]
    assert list(frame["completion"]) == [
        "Because. So the answer is in tree 0.",
        "Because. So the answer is in tree 1.",
        "in tree 0",
    ]


def test_no_examples(student: Student, reading_task: Task) -> None:
    with pytest.raises(RebaseError, match=r"no examples for the task 'tiny_reading'.*examples_refused"):
        format_training_set(reading_task, reasoned_examples(0), student, train_parameters())
