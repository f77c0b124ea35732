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
