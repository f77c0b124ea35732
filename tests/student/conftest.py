"""The tiny student."""

from dataclasses import replace
from pathlib import Path

import pytest

from rebase.student.handle import Student
from tests.tiny import ARCHITECTURES, make_student


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    """A student with a chat template."""
    return make_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(params=["float32", "bfloat16"])
def any_student(student: Student, request: pytest.FixtureRequest) -> Student:
    """The student in either number format."""
    return replace(student, dtype=request.param)


@pytest.fixture(scope="session", params=["bfloat16", *ARCHITECTURES])
def any_architecture(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Student:
    """The student in bfloat16, or in float32 with each of the architectures."""
    setting = {"dtype": "bfloat16"} if request.param == "bfloat16" else {"architecture": request.param}
    return make_student(tmp_path_factory.mktemp(request.param), **setting)


@pytest.fixture
def fresh(student: Student, tmp_path: Path) -> Student:
    """The student with an empty work folder."""
    return replace(student, workdir=tmp_path / "work")


@pytest.fixture(scope="session")
def plain_student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    """A base model: no chat template."""
    return make_student(tmp_path_factory.mktemp("plain"), chat=False)
