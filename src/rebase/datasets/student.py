"""The student's catalog entry: a cheap handle."""

from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset

from rebase.datasets.inputs import Handle
from rebase.student.handle import Student


class StudentDataset(Handle, AbstractDataset[Any, Student]):
    """Loads a ``Student`` handle; weights are read when it is opened.

    ``folder`` takes the converted weights of packaged models, ``workdir`` the checkpoints of training.
    """

    def __init__(
        self,
        model: str,
        folder: str,
        workdir: str,
        revision: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._student = Student(model, revision, Path(folder), Path(workdir))
        self.metadata = metadata

    def load(self) -> Student:
        return self._student

    def _describe(self) -> dict[str, Any]:
        return {"model": self._student.model, "revision": self._student.revision}
