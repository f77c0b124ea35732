"""The catalog entry of several students: cheap handles."""

from pathlib import Path
from typing import Annotated, Any

from kedro.io import AbstractDataset
from pydantic import Field, TypeAdapter, ValidationError

from rebase.datasets.inputs import Handle
from rebase.errors import RebaseError
from rebase.records import Strict, explain_validation
from rebase.student.handle import Student


class _Listed(Strict):
    model: str = Field(min_length=1)
    revision: str | None = None


_LIST = TypeAdapter(Annotated[list[_Listed], Field(min_length=1)])


class StudentsDataset(Handle, AbstractDataset[Any, tuple[Student, ...]]):
    """Loads a ``Student`` handle for each entry of ``students``, which has ``model`` and ``revision``.

    ``folder`` and ``workdir`` are those of ``StudentDataset``, and may be shared with it: a run of training has a name
    that tells it from all others.
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
        self._folder, self._workdir, self._dtype = Path(folder), Path(workdir), dtype
        self.metadata = metadata

    def load(self) -> tuple[Student, ...]:
        try:
            listed = _LIST.validate_python(self._students)
        except ValidationError as error:
            raise RebaseError(
                "`students` of globals.yml is not a list of entries {model: NAME, revision: COMMIT}.\n"
                f"{explain_validation(error)}"
            ) from None
        if twice := [entry.model for place, entry in enumerate(listed) if entry in listed[:place]]:
            raise RebaseError(f"`students` of globals.yml lists {', '.join(twice)} twice. Leave one out.")
        return tuple(Student(entry.model, entry.revision, self._folder, self._workdir, self._dtype) for entry in listed)

    def _describe(self) -> dict[str, Any]:
        return {"students": self._students, "dtype": self._dtype}
