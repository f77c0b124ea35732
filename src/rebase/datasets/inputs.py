"""Inputs that people provide: raw datasets, task files, evaluation sets, unlabeled inputs, real examples, grades."""

import json
import logging
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
from kedro.io import AbstractDataset, DatasetError

from rebase.datasets.previews import JSONPreview, TablePreview, TextPreview
from rebase.datastore.sources import FolderSource, Source, find_sources
from rebase.records import Task
from rebase.reporting.redaction import public
from rebase.tasks.evaluation_items import make_evaluation_items, make_unlabeled_inputs
from rebase.tasks.source_rows import SourceRows, read_source_rows
from rebase.tasks.task_files import load_task, to_yaml

logger = logging.getLogger(__name__)


class ReadOnly:
    """A dataset that no pipeline writes to."""

    def save(self, data: Any) -> NoReturn:
        raise DatasetError(f"{type(self).__name__} is read-only: a pipeline cannot write to it.")


class Handle(ReadOnly):
    """A dataset that loads a handle: it is cheap to load, and opens a model or a connection later."""

    def preview(self) -> JSONPreview:
        """The settings for kedro-viz, without secrets: its site may be published."""
        return JSONPreview(json.dumps(public(self._describe())))  # type: ignore[attr-defined]


class SourcesDataset(ReadOnly, AbstractDataset[Any, list[Source]]):
    """Loads the raw datasets at ``locations``: globs of local folders, hub ids, catalogs (see ``find_sources``)."""

    def __init__(
        self,
        locations: str | list[str],
        credentials: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._locations = [locations] if isinstance(locations, str) else list(locations)
        self._token = (credentials or {}).get("token") or None  # An empty variable is no token.
        self.metadata = metadata

    def load(self) -> list[Source]:
        return find_sources(self._locations, self._token)

    def preview(self, nrows: int = 50) -> TablePreview:
        """The names and locations of the first datasets, for kedro-viz; no dataset is read."""
        lines = [{"dataset": source.dataset, "location": _location(source)} for source in self.load()[:nrows]]
        return TablePreview(pd.DataFrame(lines).to_dict(orient="split"))

    def _describe(self) -> dict[str, Any]:
        return {"locations": self._locations}


class TaskDataset(ReadOnly, AbstractDataset[Any, Task]):
    """Loads a validated task from its file, with the instruction and examples of ``prompts`` if given."""

    def __init__(
        self, folder: str, name: str, prompts: str | None = None, metadata: dict[str, Any] | None = None
    ) -> None:
        self._folder = Path(folder)
        self._name = name
        self._prompts = prompts
        self.filepath = self._folder / f"{name}.yml"
        self.metadata = metadata

    def load(self) -> Task:
        return load_task(self._folder, self._name, self._prompts)

    def preview(self) -> TextPreview:
        """The task for kedro-viz: the content of its file, with the published prompts if they are used."""
        content = self.load().model_dump(mode="json", exclude_defaults=True)
        return TextPreview(to_yaml(content))

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self.filepath), "prompts": self._prompts}


class EvaluationRowsDataset(ReadOnly, AbstractDataset[Any, SourceRows]):
    """Loads the raw rows of a task's evaluation set, once: from the task file's source, or from ``source`` instead."""

    _content, _parameter = "evaluation set", "evaluation_source"

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
        self._token = (credentials or {}).get("token") or None  # An empty variable is no token.
        self._rows: SourceRows | None = None
        self.metadata = metadata

    def load(self) -> SourceRows:
        if self._rows is None:
            task = load_task(self._folder, self._name)
            self._rows = self._read(task, self._source or task.evaluation.source, task.evaluation.split)
        return self._rows

    def preview(self, nrows: int = 20) -> TablePreview:
        """The first rows, for kedro-viz."""
        return TablePreview(pd.DataFrame(self.load().rows[:nrows]).astype(str).to_dict(orient="split"))

    def _read(self, task: Task, location: str, split: str) -> SourceRows:
        return read_source_rows(task, location, split, self._token, self._content, self._parameter)

    def _describe(self) -> dict[str, Any]:
        return {"folder": str(self._folder), "name": self._name, "source": self._source}


class InputsDataset(EvaluationRowsDataset):
    """Inputs of a task without answers: ``row_id``, ``dataset``, ``fields``, ``query``; none without a ``source``.

    ``source`` is a file or a hub id, whose train split is read, with the columns of the task's evaluation set and its
    config if there is one of that name.
    """

    _content, _parameter = "inputs", "inputs_source"

    def load(self) -> pd.DataFrame:
        if not self._source:
            return pd.DataFrame()
        task = load_task(self._folder, self._name)
        return self._parse(task, self._read(task, self._source, "train"))

    def _parse(self, task: Task, source: SourceRows) -> pd.DataFrame:
        return make_unlabeled_inputs(task, source)

    def preview(self, nrows: int = 20) -> TablePreview:
        """The first inputs, for kedro-viz."""
        return TablePreview(self.load().head(nrows).to_dict(orient="split"))


class RealDataset(InputsDataset):
    """Examples that people wrote, as evaluation items with ``dataset`` and ``license``; none without a ``source``."""

    _content, _parameter = "real examples", "real_source"

    def _parse(self, task: Task, source: SourceRows) -> pd.DataFrame:
        return make_evaluation_items(task, source).assign(**source.origin)


class SheetsDataset(ReadOnly, AbstractDataset[Any, dict[str, str]]):
    """The CSV files of ``folder`` as text, by path: one for each person, saved by a browser or a spreadsheet."""

    def __init__(self, folder: str, metadata: dict[str, Any] | None = None) -> None:
        self._folder = Path(folder)
        self.metadata = metadata

    def load(self) -> dict[str, str]:
        files = sorted(file for file in self._folder.glob("*.csv") if not file.name.startswith("."))
        if not files:
            logger.info(
                "There is no graded sheet in %s, so agreement is not measured. Hand out the grading form (or sheet), "
                "put each returned CSV there under the person's name, and run the judge pipeline again.",
                self._folder,
            )
        return {str(file): _decode(file.read_bytes()) for file in files}

    def _describe(self) -> dict[str, Any]:
        return {"folder": str(self._folder)}


def _location(source: Source) -> str:
    if isinstance(source, FolderSource):
        return str(source.folder)
    return f"hf://{source.dataset}@{getattr(source, 'revision', None) or 'main'}"


def _decode(content: bytes) -> str:
    """A sheet's text: UTF-8, or else the encoding of spreadsheets on Windows."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")
