"""What people graded: the sheets that came back."""

from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset

from rebase.datasets.inputs import ReadOnly
from rebase.errors import RebaseError


class SheetsDataset(ReadOnly, AbstractDataset[Any, dict[str, str]]):
    """The CSV files of ``folder`` by name, as text: one a person, as a browser or a spreadsheet saved them."""

    def __init__(self, folder: str, metadata: dict[str, Any] | None = None) -> None:
        self._folder = Path(folder)
        self.metadata = metadata

    def load(self) -> dict[str, str]:
        files = sorted(file for file in self._folder.glob("*.csv") if not file.name.startswith("."))
        if not files:
            raise RebaseError(
                f"There is no graded sheet in {self._folder}. Run the pipeline judge, hand out the form (or the sheet) "
                "that it writes, and put what comes back there: one CSV a person, called by the person's name."
            )
        return {str(file): _read(file) for file in files}

    def _describe(self) -> dict[str, Any]:
        return {"folder": str(self._folder)}


def _read(file: Path) -> str:
    """The file's text: UTF-8, or else what spreadsheets on Windows write."""
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")
