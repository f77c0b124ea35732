"""A tiny expert, trained and saved as a run does it."""

from pathlib import Path

import pytest
from kedro.io.core import Version

from rebase.datasets import AdapterDataset
from rebase.records import Adapter, Task
from rebase.student.handle import Student
from rebase.student.training import train_expert
from tests.tiny import make_student, reasoned_examples, train_parameters, training_set

PREFLIGHT = {"tokens": 1, "tokens_with_loss": 1, "padding_share": 0.0}


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    """A student in a local folder, whose number format gives the same answers in every batch."""
    return make_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, student: Student, reading_task: Task) -> Path:
    """The folder ``06_models`` with an adapter for the reading task."""
    folder = tmp_path_factory.mktemp("data") / "06_models"
    arguments = (
        training_set(8),
        reasoned_examples(8),
        {},
        student,
        PREFLIGHT,
        train_parameters(epochs=2, learning_rate=0.003),
        "answer",
    )
    adapter, _, _ = train_expert(reading_task, *arguments)
    saved = Version(None, "2026-01-01T00.00.00.000Z")
    AdapterDataset(str(folder / reading_task.name / "adapter"), saved).save(adapter)
    return folder


@pytest.fixture(scope="session")
def adapter(models: Path, reading_task: Task) -> Adapter:
    """The adapter as the catalog loads it."""
    return AdapterDataset(str(models / reading_task.name / "adapter"), Version(None, None)).load()
