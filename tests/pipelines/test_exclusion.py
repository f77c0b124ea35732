"""``train.exclude``: examples of a dataset or a license are taken out afterward, and no request is paid for it."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError

from rebase.errors import RebaseError
from rebase.generation.filters.exclusion import remove_excluded, why_excluded
from rebase.parameters import ChosenTraining, ExcludeParameters
from rebase.pipelines.train.nodes import format_training_set, train_student
from rebase.records import Task
from rebase.student.adapters import CARD, ORIGIN
from rebase.student.handle import Student
from tests.tiny import make_student, reasoned_examples, train_parameters


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return make_student(tmp_path_factory.mktemp("student"))


@pytest.mark.parametrize(
    ("exclude", "reason"),
    [
        ({}, None),
        ({"datasets": ["owner/Birds"]}, "excluded_dataset"),
        ({"datasets": ["*/birds"]}, "excluded_dataset"),
        ({"datasets": "foxes; owner/b?rds"}, "excluded_dataset"),
        ({"datasets": ["birds"]}, None),
        ({"licenses": ["*-nc-*"]}, "excluded_license"),
        ({"licenses": ["cc-by-4.0", "CC-BY-NC-4.0"]}, "excluded_license"),
        ({"licenses": ["unknown", "mit"]}, None),
        ({"datasets": 7, "licenses": ""}, None),
    ],
)
def test_patterns_match_as_elsewhere(exclude: dict[str, Any], reason: str | None) -> None:
    parameters = ExcludeParameters.model_validate(exclude)
    assert why_excluded("owner/birds", "cc-by-4.0; CC BY-NC 4.0", parameters) == reason
    assert why_excluded(None, None, parameters) is None, "written without a source"


def test_what_has_no_license_can_be_excluded_as_unknown() -> None:
    unknown = ExcludeParameters(licenses=("unknown",))
    assert {why_excluded("a", license, unknown) for license in (None, float("nan"), "", "unknown")} == {
        "excluded_license"
    }
    with pytest.raises(ValidationError, match="dataset"):
        ExcludeParameters.model_validate({"dataset": "birds"})


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


def test_what_is_excluded_changes_no_finished_training_but_by_what_is_left(student: Student) -> None:
    from rebase.student.training import _fingerprint

    frame = pd.DataFrame({"prompt": ["Q"], "completion": ["A"]})
    plain, other = (
        ChosenTraining.model_validate(train_parameters(exclude={"datasets": names}).model_dump())
        for names in ([], ["never-there"])
    )
    assert _fingerprint(student, frame, plain) == _fingerprint(student, frame, other)
