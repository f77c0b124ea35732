"""The version of this run, and the entries of older runs by version, through Kedro's public API."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset, DatasetError, Version

from rebase.datasets.inputs import ReadOnly
from rebase.errors import RebaseError

logger = logging.getLogger(__name__)

#: Entries that are made after a run's scores.
_MADE_LATER = ("run_record", "judge_scores", "comparison_scores")


class RunVersionDataset(ReadOnly, AbstractDataset[Any, str]):
    """Load the version under which this run saves its outputs: the time when it started; empty outside a run."""

    versioned = True

    def __init__(self, version: Version | None = None, metadata: dict[str, Any] | None = None) -> None:
        self._version, self.metadata = version, metadata

    def load(self) -> str:
        return (self._version and self._version.save) or ""

    def _describe(self) -> dict[str, Any]:
        return {"version": self._version}


class RunCatalog:
    """A catalog as one run saw it: the run with that version of ``scores``, or the newest without a ``version``.

    A versioned entry is the run's own or the newest one before it. An entry without versions holds the newest run
    only, so it is missing in older runs.

    Args:
        catalog: Kedro's catalog.
        created_by: The pipeline that creates each entry; entries that are not listed are inputs and always exist.
        version: The version, or the first characters of it. RebaseError if there is no such run.

    """

    def __init__(self, catalog: Any, created_by: Mapping[str, str], version: str | None = None) -> None:
        self.catalog = catalog
        self._created_by = created_by
        self._config = catalog.to_config()[0]  # before anything is loaded: a loaded dataset loses its configuration
        self.version = self._next = None
        if version is not None:
            runs = self._versions("scores")
            matches = [run for run in runs if run.startswith(version)]
            if not matches:
                names = ", ".join(runs[:5]) or "none"
                raise RebaseError(f"There is no run {version!r} of this task with scores. The newest runs: {names}.")
            self.version = matches[0]
            self._next = min((run for run in runs if run > self.version), default=None)

    @property
    def is_newest(self) -> bool:
        """Whether this is the newest run of the task."""
        return self._next is None

    def exists(self, name: str) -> bool:
        """Whether the run has the entry."""
        if name not in self.catalog or not self.catalog.exists(name):
            return False
        if self._is_versioned(name):
            return self.version is None or self._version_of(name) is not None
        return self.is_newest or name not in self._created_by

    def load(self, name: str, version: str | None = None) -> Any:
        """Load an entry, or a ``version`` of it; RebaseError if it does not exist or cannot be read."""
        if name in self._created_by and not self.exists(name):
            if not self.is_newest and self.catalog.exists(name):
                raise RebaseError(f"not available for the run {self.version}: only the newest run has it.")
            raise RebaseError(f"not there yet; kedro run --pipelines={self._created_by[name]} makes it.")
        if version is None and self._is_versioned(name):
            version = self._version_of(name)
        try:
            return self.catalog.load(name, version)
        except DatasetError as error:
            raise RebaseError(str(error)) from error

    def path(self, name: str) -> Path:
        """The file or folder that ``load`` reads."""
        path = Path(self._config[name]["filepath"])
        version = self._version_of(name) if self._is_versioned(name) else None
        return path / version / path.name if version else path

    def _is_versioned(self, name: str) -> bool:
        return bool(self._config.get(name, {}).get("versioned"))

    def _versions(self, name: str) -> list[str]:
        """The existing versions, the newest first."""
        try:
            return list(self.catalog[name].list_versions(full_path=False))
        except DatasetError:
            return []

    def _version_of(self, name: str) -> str | None:
        for version in self._versions(name):
            is_made_later = name in _MADE_LATER and (self._next is None or version < self._next)
            if self.version is None or version <= self.version or is_made_later:
                return version
        return None


def load_all_versions(catalog: Any, name: str, task: str | None = None) -> dict[str, dict[str, dict[str, Any]]]:
    """All versions of a JSON file of each task, or of one ``task``, from a partitioned entry: by task and version.

    Files that cannot be read are left out with a warning.
    """
    try:
        partitions = catalog.load(name)
    except DatasetError:  # There are no files yet.
        return {}
    files: dict[str, dict[str, dict[str, Any]]] = {}
    for partition, load in partitions.items():
        file_task, _, version = partition.split("/")
        if task not in (None, file_task):
            continue
        try:
            content = load()
        except DatasetError as error:
            logger.warning("%s is left out: %s", partition, error)
            continue
        if isinstance(content, dict):
            files.setdefault(file_task, {})[version] = content
    return files
