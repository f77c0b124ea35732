"""What all filters share."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Candidate:
    """A ranked row to be filtered.

    ``cells`` are its flat ``{column: text}``, ``query_column`` is the one that matched the task's queries
    best, if any did.
    """

    row_id: str
    dataset: str
    license: str
    cells: Mapping[str, str]
    content_hash: str
    query_column: str = ""

    @property
    def config(self) -> str:
        """The dataset and config: the beginning of ``row_id``, before split and position."""
        return self.row_id.rsplit("/", 2)[0]

    @property
    def longest_cell(self) -> str:
        """The longest text; empty if the row has no cell."""
        return max(self.cells.values(), key=len, default="")


@dataclass(frozen=True)
class Rejection:
    """Why a row, or any other item, does not become an example."""

    reason: str
    detail: str = ""


def find_pattern(name: str, patterns: Iterable[str]) -> str | None:
    """The first pattern that matches the name; ``*`` and ``?`` are wildcards, case is ignored."""
    return next((pattern for pattern in patterns if fnmatchcase(name.casefold(), pattern.casefold())), None)
