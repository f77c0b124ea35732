"""The interface of a source of raw rows."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from rebase.datastore.sources.reading import RowSample
from rebase.records import DatasetCard

Value = TypeVar("Value")


@dataclass(frozen=True)
class Reading:
    """The result of reading one config: its split, a sample of the split's rows, and the splits that were not read."""

    split: str
    sample: RowSample
    other_splits: tuple[str, ...] = ()


class Source(ABC):
    """One raw dataset. Small and plain, because a build with a source may be sent to another process."""

    dataset: str

    def _once(self, compute: Callable[[], Value]) -> Value:
        """The result of ``compute``, which is called once for this source.

        ``functools.cached_property`` would compute for one source at a time: in Python 3.11 all share a lock.
        """
        name = f"{compute.__name__} cached"
        if name not in self.__dict__:
            self.__dict__[name] = compute()
        return self.__dict__[name]

    @abstractmethod
    def fingerprint(self) -> str:
        """Identifies the dataset's content. Raises OSError if it cannot be determined."""

    @abstractmethod
    def content(self) -> str | None:
        """A digest of the data files without their names: duplicates have the same. None if it is not known."""

    @abstractmethod
    def card(self) -> DatasetCard:
        """The dataset's description and license."""

    @abstractmethod
    def configs(self) -> list[str]:
        """The names of the dataset's configs."""

    @abstractmethod
    def read(self, config: str, max_rows: int) -> Reading:
        """Sample the split ``train`` of a config, or its first split.

        Raises whatever the library raises on malformed data, here or when the sample's rows are iterated.
        """


def first_split(splits: list[str]) -> tuple[str, tuple[str, ...]]:
    """The split to read, ``train`` if it exists, and the others."""
    split = "train" if "train" in splits else splits[0]
    return split, tuple(name for name in splits if name != split)
