"""Datasets of one file whose content is verified when it is loaded: each file has its checksum beside it.

The only module that uses private parts of kedro-datasets' types; ``tests/datasets/test_checked.py`` says which.
"""

import logging
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import xxhash
from kedro.io import DatasetError
from kedro_datasets.json import JSONDataset
from kedro_datasets.pandas import CSVDataset, ParquetDataset
from kedro_datasets.plotly import JSONDataset as PlotDataset
from kedro_datasets.text import TextDataset

from rebase.errors import RebaseError
from rebase.files import checksum
from rebase.reporting.run_tables import CREATED_BY

logger = logging.getLogger(__name__)

_CHANGED = "its content is not what was written"
_INTERRUPTED = "its writing was interrupted"


class FileError(RebaseError, DatasetError):
    """A file of the catalog that is missing or damaged, as one message."""


class Checked:
    """A mixin for kedro-datasets' types of one file: writes the checksum beside the file, and verifies it.

    An empty checksum means that the writing was interrupted. A file without a checksum, of an earlier version or of
    another program, is read as it is. A damaged file is never overwritten, but renamed.
    """

    # Of the type that this is mixed into.
    _fs: Any
    _protocol: Any
    _get_load_path: Any
    _get_save_path: Any
    _get_versioned_path: Any

    def load(self) -> Any:
        """Load the file. Raises FileError if it is damaged."""
        if problem := self.problem():
            raise FileError(problem)
        try:
            return super().load()  # type: ignore[misc]
        except DatasetError as error:
            if isinstance(error.__cause__, FileNotFoundError) or error.__cause__ is None:
                raise
            raise FileError(describe_damage(self._get_load_path(), error.__cause__)) from error

    def save(self, data: Any) -> None:
        """Save the file, then its checksum."""
        path = self._get_save_path()
        if self._fs.exists(str(path)) and self._find_problem(path) == _CHANGED:
            kept = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
            self._fs.mv(str(path), str(kept))
            logger.warning("%s was damaged and is now %s", path, kept)
        self._fs.makedirs(str(path.parent), exist_ok=True)
        self._fs.pipe_file(_checksum_path(path), b"")
        # Not the function that Kedro wrapped: it would choose another version.
        super().save.__wrapped__(self, data)  # type: ignore[misc]
        self._fs.pipe_file(_checksum_path(path), self._checksum(path).encode())

    def problem(self, version: str | None = None) -> str:
        """What is wrong with the file, or with a ``version`` of it, and what to do; empty if nothing is known."""
        path = self._get_versioned_path(version) if version else self._get_load_path()
        cause = self._find_problem(path)
        return cause and describe_damage(path, cause)

    def _find_problem(self, path: PurePosixPath) -> str:
        try:
            written = self._fs.cat_file(_checksum_path(path)).decode()
            if written == self._checksum(path):
                return ""
        except FileNotFoundError:
            return ""
        except ValueError:
            return _CHANGED
        return _CHANGED if written else _INTERRUPTED

    def _checksum(self, path: PurePosixPath) -> str:
        if self._protocol == "file":
            return checksum(Path(path))
        return str(xxhash.xxh3_64_hexdigest(self._fs.cat_file(str(path))))


class CheckedCSV(Checked, CSVDataset):
    """A table as CSV."""


class CheckedJSON(Checked, JSONDataset):
    """A mapping or list as JSON."""


class CheckedParquet(Checked, ParquetDataset):
    """A table as Parquet."""


class OptionalTableDataset(CheckedParquet):
    """Load a Parquet table, or an empty frame without columns where no run has written it yet.

    A version that is named (``--load-versions``) must exist.
    """

    def load(self) -> pd.DataFrame:
        is_named = self._version is not None and self._version.load is not None
        return super().load() if is_named or self.exists() else pd.DataFrame()


class CheckedPlot(Checked, PlotDataset):
    """A plotly figure as JSON."""


class CheckedText(Checked, TextDataset):
    """A text, such as an HTML page."""


def describe_damage(path: PurePosixPath, cause: object) -> str:
    """The message about a damaged file: which, why, and the command that makes it again."""
    pipeline = CREATED_BY.get(path.stem)
    remedy = f"Make it again: kedro run --pipelines={pipeline}" if pipeline else "`kedro doctor` says what to run"
    return f"{path} is damaged: {' '.join(str(cause).split())[:300]}. {remedy}."


def _checksum_path(path: PurePosixPath) -> str:
    return str(path.with_name(f".{path.name}.xxh3"))
