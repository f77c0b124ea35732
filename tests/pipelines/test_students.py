"""The students pipeline over two tiny students of the same name."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner
from kedro_datasets.json import JSONDataset
from kedro_datasets.pandas import CSVDataset, ParquetDataset
from kedro_datasets.partitions import PartitionedDataset

from rebase.datasets import AdapterDataset
from rebase.errors import RebaseError
from rebase.parameters import StudentsParameters
from rebase.pipelines import prepare
from rebase.pipelines.students import create_pipeline
from rebase.pipelines.students.nodes import by_name, predict_students, score_students, select_examples, train_students
from rebase.records import STUDENTS_COLUMNS, STUDENTS_LOG_COLUMNS, Task
from rebase.student.handle import Student
from tests.shipped import shipped_task
from tests.tiny import evaluate_parameters, evaluation_items, make_student, reasoned_examples, train_parameters


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> tuple[Student, ...]:
    """Two whose folders are both called ``tiny``, with one working folder, as the catalog has them."""
    work = tmp_path_factory.mktemp("work")
    made = [make_student(tmp_path_factory.mktemp(name)) for name in ("first", "second")]
    return tuple(replace(student, workdir=work) for student in made)


def run(task: Task, students: tuple[Student, ...], folder: Path) -> dict[str, object]:
    datasets = {
        "students_adapters": PartitionedDataset(
            path=str(folder / "adapters"), dataset=AdapterDataset, overwrite=True,
            load_args={"maxdepth": 1, "withdirs": True},
        ),
        "students_train_summary": JSONDataset(filepath=str(folder / "summary.json")),
        "students_scores": JSONDataset(filepath=str(folder / "scores.json")),
        "students_training_log": ParquetDataset(filepath=str(folder / "log.parquet")),
        "students_table": CSVDataset(filepath=str(folder / "table.csv"), save_args={"index": False}),
    }  # fmt: skip
    given = {
        "task": task,
        "params:students": StudentsParameters(examples="reasoned_examples"),
        "reasoned_examples": reasoned_examples(9),
        **dict.fromkeys(("examples", "synthesized_examples", "distilled_examples", "mixed_examples"), pd.DataFrame()),
        "evaluation_items": evaluation_items(5),
        "params:train": train_parameters(),
        "params:train.target": "answer",
        "params:evaluate": evaluate_parameters(limit=4),
    }
    catalog = DataCatalog(
        {name: MemoryDataset(value) for name, value in given.items()}
        | {"students": MemoryDataset(students, copy_mode="assign")}
        | datasets
    )
    made = SequentialRunner().run(create_pipeline() - prepare.create_pipeline(), catalog)
    return {name: dataset.load() for name, dataset in (made | datasets).items()}


@pytest.fixture(scope="module")
def made(students, reading_task: Task, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return run(reading_task, students, tmp_path_factory.mktemp("made"))


def test_each_student_has_an_adapter_with_its_card(made):
    folders = {name: load().folder for name, load in made["students_adapters"].items() if name}
    assert {name: folder.name for name, folder in folders.items()} == {"tiny": "tiny", "tiny-2": "tiny-2"}
    for folder in folders.values():
        assert "| birds | cc0-1.0 | local:tiny | 4 |" in (folder / "README.md").read_text()
        assert (folder / "training_data.json").exists()


def test_the_table_has_before_after_and_gain(made, reading_task):
    assert list(made["students_table"]) == STUDENTS_COLUMNS
    table = made["students_table"].set_index(["student", "metric"])
    assert list(table.index) == [(name, metric) for name in ("tiny", "tiny-2") for metric in reading_task.metrics]
    for index, row in table.iterrows():
        assert row["gain"] == pytest.approx(row["after"] - row["before"], abs=0.01), index
        for which in ("before", "after", "gain"):
            assert row[f"{which}_low"] <= row[which] <= row[f"{which}_high"]
        assert 0 < row["gain_p"] <= 1
        assert (row["items"], row["examples"]) == (4, 9)
        assert row["trainable_parameters"] > 0
    assert list(made["students_scores"]["differences"]) == [
        "tiny expert - tiny student",
        "tiny-2 expert - tiny-2 student",
        "tiny-2 expert - tiny expert",
    ]
    predictions = made["students_predictions"]
    assert predictions.groupby("item_id")["system"].nunique().tolist() == [4] * 4
    assert len(made["students_plot"].data) == 4


def test_an_expert_that_gives_one_label_is_named(caplog: pytest.LogCaptureFixture):
    task, count = shipped_task("mnli"), 30
    one, *others = task.answer.labels
    gold = [one, *others] * 10
    generations = pd.concat(
        pd.DataFrame({"system": system, "raw_output": output, "prompt": ""}).assign(
            item_id=range(count), references=[json.dumps([label]) for label in gold]
        )
        for system, output in {
            "a student": gold,
            "a expert": gold,
            "b student": gold,
            "b expert": [one] * count,
        }.items()
    )
    summary = {"revision": "", "kept": 9, "trainable_parameters": 1, "seconds": 60}
    trained = {"students": {"a": summary, "b": summary}}
    _, scores, _ = score_students(task, generations, trained, evaluate_parameters())
    assert f"b expert gives nearly one label: {one!r} for 30 of 30 items." in scores["warnings"]
    assert all(line.startswith("b expert") for line in scores["warnings"])
    assert f"students: {scores['warnings'][0]}" in caplog.messages


def test_counts_add_up(made):
    trained = made["students_train_summary"]
    assert (trained["in"], trained["kept"], trained["rejected"]) == (18, 18, {})
    assert list(trained["students"]) == ["tiny", "tiny-2"]
    counts = {"stage": "students", "in": 5, "kept": 4, "rejected": {"over_limit": 1}}
    assert made["students_summary"].items() >= counts.items()


def test_each_student_has_a_training_log(made):
    log = made["students_training_log"]
    assert list(log) == STUDENTS_LOG_COLUMNS
    assert log.groupby("student")["step"].apply(list).to_dict() == {"tiny": [1, 2, 3], "tiny-2": [1, 2, 3]}
    assert log["loss"].notna().all()


def test_a_finished_run_is_not_trained_again(made, students, reading_task, tmp_path):
    adapters = {file: file.stat().st_mtime_ns for file in students[0].workdir.rglob("*.safetensors")}
    assert len(adapters) == 2
    again = run(reading_task, students[:1], tmp_path)
    assert {file: file.stat().st_mtime_ns for file in students[0].workdir.rglob("*.safetensors")} == adapters
    assert again["students_table"].equals(made["students_table"].head(2))


def test_nothing_is_trained_if_one_student_cannot_be(students, reading_task, tmp_path):
    first = replace(students[0], workdir=tmp_path / "work")
    absent = replace(first, model=str(tmp_path / "absent"))
    with pytest.raises(RebaseError, match=r"There is no model .*absent"):
        train_students(reading_task, reasoned_examples(4), (first, absent), train_parameters(), "answer")
    assert not (tmp_path / "work").exists()


def test_missing_adapters_and_one_server_for_several_students_are_rejected(students, reading_task):
    given = (reading_task, evaluation_items(2), students)
    with pytest.raises(RebaseError, match="no adapter of tiny-2"):
        predict_students(*given, {"tiny": None}, {"students": {}}, evaluate_parameters())
    server = evaluate_parameters(server="http://localhost:1/v1")
    with pytest.raises(RebaseError, match="a server has one student"):
        predict_students(*given, {"tiny": None, "tiny-2": None}, {"students": {}}, server)


def test_adapters_of_a_list_in_another_order_are_rejected(made, students, reading_task):
    """Repeated names have numbers by their place in the list."""
    given = (made["students_adapters"], made["students_train_summary"], evaluate_parameters())
    with pytest.raises(RebaseError, match=r"the adapter of tiny was trained on another model of this name"):
        predict_students(reading_task, evaluation_items(2), students[::-1], *given)
    assert str(Path(students[0].model).parent) not in json.dumps(made["students_train_summary"])


def test_names_are_safe_and_unique():
    models = ["package:llm", "owner/Model-8.1B", "owner/Model-8.1B", "OWNER/model-8.1b-2", "../..", "a b"]
    names = list(by_name([Student(model, None, Path(), Path()) for model in models if not Path(model).is_dir()]))
    assert names == ["package-llm", "owner-Model-8.1B", "owner-Model-8.1B-2", "OWNER-model-8.1b-2-2", "a-b"]
    assert list(by_name([Student("::", None, Path(), Path())])) == ["student"]


def test_examples_come_from_the_table_that_is_named():
    tables = {"reasoned_examples": reasoned_examples(2), "mixed_examples": pd.DataFrame()}
    assert select_examples(StudentsParameters(examples="reasoned_examples"), **tables) is tables["reasoned_examples"]
    with pytest.raises(RebaseError, match="there are no mixed_examples"):
        select_examples(StudentsParameters(examples="mixed_examples"), **tables)
