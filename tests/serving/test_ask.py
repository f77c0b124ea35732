"""``kedro ask``, as people and their scripts call it."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from kedro.io import DataCatalog, MemoryDataset

from rebase import Expert, cli
from rebase.datasets import AdapterDataset
from rebase.records import Adapter, Task
from rebase.student.handle import Student
from tests.serving.test_expert import FIELDS
from tests.tiny import evaluate_parameters

ONE = [f"--{name}={text}" for name, text in FIELDS[1].items()]


@pytest.fixture(autouse=True)
def catalog(student: Student, models: Path, reading_task: Task, monkeypatch: pytest.MonkeyPatch) -> DataCatalog:
    """The catalog of a project in which the reading task was trained."""
    folder = next((models / reading_task.name / "adapter").glob("*/adapter"))
    catalog = DataCatalog(
        {
            "task": MemoryDataset(reading_task),
            "adapter": AdapterDataset(str(folder)),
            "student": MemoryDataset(student, copy_mode="assign"),
            "params:evaluate": MemoryDataset(evaluate_parameters()),
        }
    )
    monkeypatch.setattr(cli, "_load_catalog", lambda env, parameters: catalog)
    return catalog


@pytest.fixture(scope="module")
def expert(student: Student, adapter: Adapter) -> Expert:
    return Expert.load(adapter.folder, student.model)


def call(*arguments: str, code: int = 0, typed: str | None = None) -> str:
    result = CliRunner().invoke(cli.cli, ["ask", *arguments], input=typed)
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


def test_one_answer(expert: Expert) -> None:
    from rebase.reporting.console import visible

    answer = visible(expert.answer(**FIELDS[1]))
    assert call(*ONE) == f"{answer}\n"
    separate = [part for name, text in FIELDS[1].items() for part in (f"--{name}", text)]
    assert call(*separate) == f"{answer}\n"
    [untrained] = expert.answers(FIELDS[1:2], untrained=True)
    assert call(*ONE, "--beside") == f"student  {visible(untrained)}\nexpert   {answer}\n"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_file_of_inputs(expert: Expert, tmp_path: Path, suffix: str) -> None:
    rows = pd.DataFrame(FIELDS).assign(id=range(len(FIELDS)))
    rows.to_json(tmp_path / "inputs.jsonl", orient="records", lines=True)
    target = tmp_path / f"answers{suffix}"
    printed = call("--inputs", str(tmp_path / "inputs.jsonl"), "--to", str(target), "--beside")
    assert printed.startswith(f"{len(FIELDS)} answers written to {target}")
    read = {".jsonl": lambda file: pd.read_json(file, lines=True), ".csv": pd.read_csv, ".parquet": pd.read_parquet}
    answers = read[suffix](target)
    assert list(answers) == ["context", "question", "id", "expert_answer", "student_answer"]
    assert answers["context"].to_list() == [fields["context"] for fields in FIELDS]
    if suffix != ".csv":  # a reader of CSV changes line breaks
        assert answers["expert_answer"].to_list() == expert.answers(FIELDS)
        assert answers["student_answer"].to_list() == expert.answers(FIELDS, untrained=True)


def test_a_file_of_answers_has_the_values_of_its_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Expert, "answers", lambda self, fields: ["It is."] * len(fields))
    values = {"small": 1e-15, "long": 0.12345678901234568, "nothing": None, "nested": {"é": [1, None]}}
    rows = [FIELDS[0] | values | {"mixed": mixed, "huge": 2**70, "half": "\ud800", "empty": {}} for mixed in ("a", 5)]
    inputs, as_json, as_csv, as_parquet = (tmp_path / name for name in ("in.jsonl", "a.jsonl", "a.csv", "a.parquet"))
    inputs.write_text("\n".join(map(json.dumps, rows)))
    for target in (as_json, as_csv, as_parquet):
        call("--inputs", str(inputs), "--to", str(target))
    assert list(map(json.loads, as_json.read_text("utf-8").splitlines())) == [
        row | {"expert_answer": "It is."} for row in rows
    ]
    assert pd.read_csv(as_csv)["half"].to_list() == [r"\ud800"] * 2
    columns = pd.read_parquet(as_parquet).to_dict("list")
    assert (columns["small"], columns["long"]) == ([1e-15] * 2, [0.12345678901234568] * 2)
    assert (columns["mixed"], columns["huge"]) == (["a", "5"], [str(2**70)] * 2)
    assert (columns["half"], columns["empty"]) == ([r"\ud800"] * 2, ["{}"] * 2)


def test_a_file_of_answers_has_times_and_missing_numbers_of_its_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Expert, "answers", lambda self, fields: ["It is."] * len(fields))
    inputs, answers = tmp_path / "in.parquet", tmp_path / "answers.jsonl"
    pd.DataFrame(FIELDS[:1]).assign(at=pd.Timestamp("2020-01-02 03:04"), size=float("nan")).to_parquet(inputs)
    call("--inputs", str(inputs), "--to", str(answers))
    written = json.loads(answers.read_text("utf-8"))
    assert (written["at"], written["size"]) == ("2020-01-02 03:04:00", None)


def test_a_dialog(expert: Expert, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enter alone repeats the last text, and the end of the input ends it."""
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda self: True)
    monkeypatch.setattr(Expert, "answer", lambda self, **fields: json.dumps(fields))
    printed = call(typed="The owl.\nWhere?\n\nWhen?\n")
    assert json.dumps({"context": "The owl.", "question": "Where?"}) in printed
    assert json.dumps({"context": "The owl.", "question": "When?"}) in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "context is missing, question is missing: the fields of the task 'tiny_reading' are context, question."),
        (["--context=a", "--passage=b"], "passage is unknown, question is missing"),
        (["--context=a", "--question"], "--question gives no field a text: write --FIELD=TEXT"),
        (["a question"], "a question gives no field a text"),
        (["--inputs=FOLDER/empty.jsonl", "--to=FOLDER/a.csv"], "empty.jsonl is empty"),
        (["--inputs=FOLDER/header.csv", "--to=FOLDER/a.csv"], "header.csv is empty"),
        (["--inputs=FOLDER/other.jsonl", "--to=FOLDER/a.csv"], "there is no column question, only context."),
        (["--inputs=FOLDER/null.jsonl", "--to=FOLDER/a.csv"], "row 0: there is no value in question"),
        (["--inputs=FOLDER/other.jsonl", "--to=FOLDER/a.txt"], "a.txt: its format must be one of .jsonl, .csv"),
        (["--inputs=FOLDER/inputs.xlsx", "--to=FOLDER/a.csv"], "inputs.xlsx: its format must be one of"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "inputs.xlsx").touch()
    (tmp_path / "header.csv").write_text("context,question\n")
    (tmp_path / "other.jsonl").write_text('{"context": "a"}\n')
    (tmp_path / "null.jsonl").write_text('{"context": "a", "question": null}\n')
    printed = call(*(argument.replace("FOLDER", str(tmp_path)) for argument in arguments), code=1)
    assert words in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "a.csv").exists()


def test_inputs_and_the_file_of_answers_go_together(tmp_path: Path) -> None:
    (tmp_path / "inputs.jsonl").touch()
    assert "Give --inputs together with --to" in call("--inputs", str(tmp_path / "inputs.jsonl"), code=2)


def test_a_task_without_adapter(catalog: DataCatalog, tmp_path: Path) -> None:
    catalog["adapter"] = AdapterDataset(str(tmp_path / "nothing"))
    message = (
        "Error: There is no adapter for the task 'tiny_reading'. Train one: kedro run --params=task=tiny_reading\n"
    )
    assert call(*ONE, code=1) == message


def test_an_adapter_of_another_student(catalog: DataCatalog, student: Student) -> None:
    catalog["student"] = MemoryDataset(
        Student("owner/other", None, student.folder, student.workdir), copy_mode="assign"
    )
    assert "was trained on the student in a folder or file called 'tiny'" in call(*ONE, code=1)


def test_a_student_in_a_local_file(
    catalog: DataCatalog, student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = call(*ONE)
    (tmp_path / student.name).touch()
    monkeypatch.setattr("rebase.student.handle.locate_model", lambda model, folder: student.model)
    catalog["student"] = MemoryDataset(replace(student, model=str(tmp_path / student.name)), copy_mode="assign")
    assert call(*ONE) == expected
