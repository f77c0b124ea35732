"""The interface of a source of raw rows."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from rebase.datastore.sources.cards import (
    MOST_CHARACTERS,
    declared_configs,
    declared_features,
    front_matter,
    label_names,
    parse_card,
)
from rebase.datastore.sources.errors import with_retries
from rebase.datastore.sources.files import DataFiles, find_files
from rebase.datastore.sources.reading import sample_rows
from rebase.datastore.sources.rows import RowSample
from rebase.errors import RebaseError
from rebase.records import DatasetCard

Value = TypeVar("Value")

#: Characters of the file with the features of all configs that are read.
_MOST_INFOS = 2**24


class Source(ABC):
    """One raw dataset: a local folder, or a repository on the hub. Both are read in the same way.

    ``selected`` are the configs to read, all if there are none; ``split`` is the split, ``train`` or else the first if
    there is none.
    Small and plain, because a build with a source may be sent to another process.
    """

    dataset: str
    token: str | None = None
    selected: tuple[str, ...] = ()
    split: str | None = None
    description: str = ""

    @abstractmethod
    def fingerprint(self) -> str:
        """Identifies the dataset's content. Raises OSError if it cannot be determined."""

    @abstractmethod
    def content(self) -> str | None:
        """A digest of the data files by format and split: duplicates have the same. None or empty if not known."""

    @abstractmethod
    def revision_id(self) -> str:
        """Identifies what is read: the card and the rows."""

    @abstractmethod
    def address(self) -> str:
        """The path or address of the dataset's folder."""

    @abstractmethod
    def text_of(self, name: str, most: int) -> str:
        """The text of a file of the dataset, at most so many characters; empty if there is no such file."""

    def card(self) -> DatasetCard:
        """The dataset's description and license. ``description`` is used if the card has none."""
        return parse_card(self.dataset, self._once(self._card_text), self.revision_id(), self.description)

    def configs(self) -> list[str]:
        """The names of the dataset's configs."""
        return sorted(self.selected or declared_configs(self._front()))

    def read(self, config: str, max_rows: int) -> tuple[DataFiles, RowSample]:
        """Sample the rows of a split of a config.

        Returns the split's files and the sample. A file that cannot be read is in the sample's ``unread``. Raises
        RebaseError if there is no such config or split, or no file that can be read.
        """
        configs = declared_configs(self._front())
        if config not in configs:
            raise RebaseError(f"there is no config {config!r}; there are {', '.join(sorted(configs))}")
        files = with_retries(partial(find_files, self.address(), configs[config], self.split, self.token))
        return files, sample_rows(files, label_names(self._features(config)), max_rows)

    def _once(self, compute: Callable[[], Value]) -> Value:
        """The result of ``compute``, which is called once for this source.

        ``functools.cached_property`` would compute for one source at a time: in Python 3.11 all share a lock.
        """
        name = f"{compute.__name__} cached"
        if name not in self.__dict__:
            self.__dict__[name] = compute()
        return self.__dict__[name]

    def _card_text(self) -> str:
        return self.text_of("README.md", MOST_CHARACTERS).replace("\x00", "")

    def _old_card_text(self) -> str:
        return self.text_of("dataset_infos.json", _MOST_INFOS)

    def _front(self) -> dict[str, Any]:
        return self._once(self._parse_front)

    def _parse_front(self) -> dict[str, Any]:
        return front_matter(self._once(self._card_text))

    def _features(self, config: str) -> dict[str, Any]:
        """The features that the card declares, or the file in which older versions of the library wrote them."""
        from datasets import Features

        features: dict[str, Any] = {}
        old_card = self._once(self._old_card_text)
        with suppress(Exception):  # The file may have any content; nothing depends on it but the names of labels.
            infos = json.loads(old_card)
            info = next(iter(infos.values())) if len(infos) == 1 else infos[config]
            features |= Features.from_dict(info["features"])
        return features | declared_features(self._front(), config)
