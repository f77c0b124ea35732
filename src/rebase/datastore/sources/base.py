"""What a source of raw rows is."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from rebase.datastore.sources.reading import Sample
from rebase.records import DatasetCard

Value = TypeVar("Value")


@dataclass(frozen=True)
class Reading:
    """What was read of one config: which split, a sample of its rows, and the splits that were left alone."""

    split: str
    sample: Sample
    other_splits: tuple[str, ...] = ()


class Source(ABC):
    """One raw dataset. Small and plain: a build that holds one may be sent to another process."""

    dataset: str

    def _once(self, find: Callable[[], Value]) -> Value:
        """What ``find`` returns, found once for this source.

        ``functools.cached_property`` would let only one source at a time find it: in Python 3.11 all share a lock.
        """
        found = self.__dict__
        name = f"{find.__name__} found"
        if name not in found:
            found[name] = find()
        return found[name]

    @abstractmethod
    def fingerprint(self) -> str:
        """What the dataset is known by: changes when it does. Raises OSError where it cannot be had."""

    @abstractmethod
    def content(self) -> str | None:
        """A digest of the data files, whatever they are called: copies have the same. None if it is not known."""

    @abstractmethod
    def card(self) -> DatasetCard:
        """The dataset's description and license."""

    @abstractmethod
    def configs(self) -> list[str]:
        """The names of the dataset's configs."""

    @abstractmethod
    def read(self, config: str, max_rows: int) -> Reading:
        """A sample of a config: of its split ``train``, or of its first one.

        Raises whatever the library raises on malformed data, here or while the sample's rows are taken.
        """


def first_split(splits: list[str]) -> tuple[str, tuple[str, ...]]:
    """The split to read, ``train`` where there is one, and the others."""
    split = "train" if "train" in splits else splits[0]
    return split, tuple(name for name in splits if name != split)
