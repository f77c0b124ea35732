"""Catalog entries of the encoder, of one student and of several: cheap handles, which read weights when opened."""

from pathlib import Path
from typing import Annotated, Any

from kedro.io import AbstractDataset
from pydantic import Field

from rebase.datasets.inputs import Handle
from rebase.datastore.encoder import Encoder
from rebase.errors import RebaseError
from rebase.records import Strict, validated
from rebase.student.handle import Student


class _Entry(Strict):
    model: str = Field(min_length=1)
    revision: str | None = None


class EncoderDataset(Handle, AbstractDataset[Any, Encoder]):
    """Loads an ``Encoder`` handle."""

    def __init__(
        self,
        model: str,
        folder: str,
        revision: str | None = None,
        dtype: str = "auto",
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._settings: dict[str, Any] = {"model": model, "revision": revision, "dtype": dtype}
        self._folder = Path(folder)
        self.metadata = metadata

    def load(self) -> Encoder:
        return Encoder(folder=self._folder, **self._settings)

    def _describe(self) -> dict[str, Any]:
        return self._settings


class StudentDataset(Handle, AbstractDataset[Any, Student]):
    """Loads a ``Student`` handle.

    ``folder`` has the converted weights of packaged models, ``workdir`` the checkpoints of training.
    """

    def __init__(
        self,
        model: str,
        folder: str,
        workdir: str,
        revision: str | None = None,
        dtype: str = "auto",
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._settings = (model, revision, Path(folder), Path(workdir), dtype)
        self.metadata = metadata

    def load(self) -> Student:
        return Student(*self._settings)

    def _describe(self) -> dict[str, Any]:
        model, revision, *_, dtype = self._settings
        return {"model": model, "revision": revision, "dtype": dtype}


class StudentsDataset(Handle, AbstractDataset[Any, tuple[Student, ...]]):
    """Loads a ``Student`` handle for each entry of ``students``, which has ``model`` and ``revision``.

    It may share ``folder`` and ``workdir`` with a ``StudentDataset``: each training run has a unique name.
    """

    def __init__(
        self,
        students: list[dict[str, Any]],
        folder: str,
        workdir: str,
        dtype: str = "auto",
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._students = students
        self._settings = (Path(folder), Path(workdir), dtype)
        self.metadata = metadata

    def load(self) -> tuple[Student, ...]:
        problem = "`students` of globals.yml is not a list of entries {model: NAME, revision: COMMIT}."
        entries = validated(Annotated[list[_Entry], Field(min_length=1)], self._students, problem)
        if repeated := [entry.model for index, entry in enumerate(entries) if entry in entries[:index]]:
            raise RebaseError(f"`students` of globals.yml lists {', '.join(repeated)} twice. Remove one entry.")
        return tuple(Student(entry.model, entry.revision, *self._settings) for entry in entries)

    def _describe(self) -> dict[str, Any]:
        return {"students": self._students, "dtype": self._settings[-1]}
