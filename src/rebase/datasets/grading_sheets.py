"""The graded sheets that people return."""

import logging
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset

from rebase.datasets.inputs import ReadOnly

logger = logging.getLogger(__name__)


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
        return {str(file): _read(file) for file in files}

    def _describe(self) -> dict[str, Any]:
        return {"folder": str(self._folder)}


def _read(file: Path) -> str:
    """The file's text: UTF-8, or else the encoding of spreadsheets on Windows."""
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")
