"""Train, run as a pipeline over a tiny student."""

import json
from pathlib import Path

import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner
from kedro_datasets.json import JSONDataset
from kedro_datasets.pandas import ParquetDataset

from rebase.datasets.adapter import AdapterDataset
from rebase.errors import RebaseError
from rebase.generation.filters.exclusion import remove_excluded
from rebase.pipelines.train import create_pipeline
from rebase.pipelines.train.nodes import format_training_set, train_student
from rebase.records import TRAINING_LOG_COLUMNS, Task
from rebase.student.adapters import CARD, ORIGIN
from rebase.student.handle import Student
from tests.tiny import make_student, reasoned_examples, train_parameters


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return make_student(tmp_path_factory.mktemp("student"))


def test_examples_become_an_adapter_with_its_card_and_log(student: Student, reading_task: Task, tmp_path: Path) -> None:
    catalog = DataCatalog(
        {
            "task": MemoryDataset(reading_task),
            "student": MemoryDataset(student, copy_mode="assign"),
            "reasoned_examples": MemoryDataset(reasoned_examples(9)),
            "adapter": AdapterDataset(str(tmp_path / "adapter")),
            "training_log": ParquetDataset(filepath=str(tmp_path / "log.parquet")),
            "preflight": JSONDataset(filepath=str(tmp_path / "preflight.json")),
            "params:train": MemoryDataset(train_parameters(optimizer="adamw_8bit")),
            "params:train.target": MemoryDataset("answer"),
        }
    )
    outputs = SequentialRunner().run(create_pipeline(), catalog)

    card = (catalog.load("adapter").folder / "README.md").read_text()
    assert "| birds | cc0-1.0 | local:tiny | 4 |" in card
    assert "| foxes | cc0-1.0 | local:tiny | 5 |" in card
    assert str(tmp_path) not in card
    assert f'"optimizer": "{outputs["train_summary"].load()["optimizer"]}"' in card

    assert list(catalog.load("training_log")) == TRAINING_LOG_COLUMNS
    assert catalog.load("training_log")["step"].tolist() == [1, 2, 3]
    assert catalog.load("preflight")["steps"] == 3
    assert list(outputs["loss_plot"].load().data[0].x) == [1, 2, 3]


def test_excluded_examples_are_counted_and_in_no_card(student: Student, reading_task: Task) -> None:
    examples = reasoned_examples(6).assign(license=["mit"] * 5 + ["cc-by-nc-4.0"])
    examples.loc[2, ["dataset", "license"]] = None
    exclude = {"datasets": ["foxes"], "licenses": ["*-nc-*"]}
    parameters = train_parameters(exclude=exclude, gradient_accumulation=1)
    left, excluded = remove_excluded(examples, parameters.exclude)
    assert excluded == {"excluded_dataset": 2, "excluded_license": 1}
    formatted = format_training_set(reading_task, examples, student, parameters, "answer")
    assert list(formatted["example_id"]) == list(left["example_id"]) == ["e1", "e2", "e3"]
    seen = {"tokens": 1, "tokens_with_loss": 1, "padding_share": 0.0}
    adapter, _, summary = train_student(reading_task, formatted, examples, student, seen, parameters, "answer")
    assert summary["in"] == 6 == summary["kept"] + sum(summary["rejected"].values())
    assert summary["rejected"].items() >= excluded.items()
    card = (Path(adapter.folder) / CARD).read_text()
    assert "foxes" not in card.split("## Training\n")[0]
    assert "| none | none | " in card
    sources = json.loads((Path(adapter.folder) / ORIGIN).read_text())["sources"]
    assert {(line["dataset"], line["examples"]) for line in sources} == {("birds", 2), (None, 1)}


def test_a_training_set_of_before_is_not_trained_on(student: Student, reading_task: Task) -> None:
    examples = reasoned_examples(4)
    before = format_training_set(reading_task, examples, student, train_parameters(), "answer")
    parameters = train_parameters(exclude={"datasets": ["foxes"]})
    with pytest.raises(RebaseError, match=r"formatted with another `train.exclude`.*format_training_set"):
        train_student(reading_task, before, examples, student, {}, parameters, "answer")


def test_nothing_left_is_an_error(student: Student, reading_task: Task) -> None:
    parameters = train_parameters(exclude={"datasets": ["*"]})
    with pytest.raises(RebaseError, match=r"removes every example.*excluded_dataset': 3"):
        format_training_set(reading_task, reasoned_examples(3), student, parameters, "answer")
