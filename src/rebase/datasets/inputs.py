"""What people give: raw datasets, task files, evaluation sets."""

from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
import yaml
from kedro.io import AbstractDataset, DatasetError
from kedro_datasets._typing import JSONPreview, TablePreview

from rebase.errors import RebaseError
from rebase.evaluation import evaluation_items
from rebase.records import Task
from rebase.sources import HubSource, Source, find_sources, read_files, read_rows


class ReadOnly:
    """A dataset that people write by hand or that is only a handle."""

    def save(self, data: Any) -> NoReturn:
        raise DatasetError(f"{type(self).__name__} is read-only: a pipeline cannot write to it.")


class SourcesDataset(ReadOnly, AbstractDataset[Any, list[Source]]):
    """The raw datasets that ``locations`` name: globs of local folders, hub ids, catalogues (see ``find_sources``)."""

    def __init__(
        self,
        locations: str | list[str],
        credentials: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._locations = [locations] if isinstance(locations, str) else list(locations)
        self._token = (credentials or {}).get("token")
        self.metadata = metadata

    def load(self) -> list[Source]:
        return find_sources(self._locations, self._token)

    def _describe(self) -> dict[str, Any]:
        return {"locations": self._locations}


class TaskDataset(ReadOnly, AbstractDataset[Any, Task]):
    """One task file of a folder, validated."""

    def __init__(self, folder: str, name: str, metadata: dict[str, Any] | None = None) -> None:
        self._folder = Path(folder)
        self._name = name
        self.metadata = metadata

    def load(self) -> Task:
        return load_task(self._folder, self._name)

    def preview(self) -> JSONPreview:
        """The task as kedro-viz shows it."""
        return JSONPreview(self.load().model_dump_json())

    def _describe(self) -> dict[str, Any]:
        return {"folder": str(self._folder), "name": self._name}


class EvaluationDataset(ReadOnly, AbstractDataset[Any, pd.DataFrame]):
    """A task's evaluation items: ``item_id``, ``fields``, ``query``, ``answers``.

    Read from where the task file says, a file or a hub id, or from ``source`` instead.
    """

    def __init__(
        self,
        folder: str,
        name: str,
        source: str | None = None,
        credentials: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._folder = Path(folder)
        self._name = name
        self._source = source
        self._token = (credentials or {}).get("token")
        self.metadata = metadata

    def load(self) -> pd.DataFrame:
        task = load_task(self._folder, self._name)
        where = self._source or task.evaluation.source
        return evaluation_items(task, self._rows(task, where), where)

    def preview(self, nrows: int = 20) -> TablePreview:
        """The first items as kedro-viz shows them."""
        return TablePreview(self.load().head(nrows).to_dict(orient="split"))

    def _rows(self, task: Task, where: str) -> list[dict[str, Any]]:
        if Path(where).suffix in (".parquet", ".jsonl", ".json", ".csv", ".tsv"):
            if not Path(where).exists():
                raise RebaseError(f"The evaluation set of task {task.name!r} is missing: there is no file {where}.")
            try:
                return list(read_rows(read_files([Path(where)])))
            except Exception as error:  # The readers raise whatever their format makes them raise.
                raise RebaseError(
                    f"The evaluation set of task {task.name!r} cannot be read from {where}: {error}\nMend the file."
                ) from error
        spec = task.evaluation
        try:
            source = HubSource(where, spec.revision, self._token)
            config = spec.config or source.configs()[0]
            return list(read_rows(source.batches(config, spec.split)))
        except Exception as error:
            raise RebaseError(
                f"The evaluation set of task {task.name!r} cannot be read from the hub as {where!r}: {error}\n"
                "Give a file instead: --params=evaluation_source=FILE."
            ) from error

    def _describe(self) -> dict[str, Any]:
        return {"folder": str(self._folder), "name": self._name, "source": self._source}


def load_task(folder: Path, name: str) -> Task:
    """Read and validate ``folder/name.yml``; raises RebaseError that names the tasks there are, or the field."""
    path = folder / f"{name}.yml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yml"))) or "none"
        raise RebaseError(f"There is no task {name!r} in {folder}: known are {known}. A task is one YAML file there.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RebaseError(f"{path}: not valid YAML. {error}") from None
    task = Task.parse(content, str(path))
    if task.name != name:
        raise RebaseError(f"{path}: `name` is {task.name!r}, the file's name says {name!r}. Make them the same.")
    return task
