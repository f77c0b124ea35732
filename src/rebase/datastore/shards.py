"""A table in shards: planned by a node, built one at a time by the store, read on access."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import pandas as pd
import pyarrow as pa

from rebase.datastore.engines import Engine, LocalEngine, Opener
from rebase.errors import RebaseError

Result = TypeVar("Result")

_METADATA_KEY = b"rebase"


@dataclass(frozen=True)
class Shard:
    """A planned shard. ``build`` makes its table; it is not called if a shard with this fingerprint exists.

    ``build`` may run in another process, so it refers only to what this shard needs. In a store of the format
    ``file`` it returns a function that writes a file to a path.
    """

    name: str
    fingerprint: str
    build: Callable[[Any], Any]


@dataclass(frozen=True)
class ShardPlan:
    """All shards of a store.

    Attributes:
        shards: the shards, each with a name of its own.
        opener: yields the argument of every ``build``, such as an encoder; opened only if a shard is missing.
        threads: how many builds share that argument at once: several if builds wait, one if a build uses all cores.
        seconds: how long planning took.
        made_of: the ``Shards.digest`` of the store that the shards are made of; empty if there is none.
        may_remove: whether shards that are not planned may be removed from the store.

    """

    shards: list[Shard]
    opener: Opener = field(default=nullcontext)
    threads: int = 1
    seconds: float = 0.0
    made_of: str = ""
    may_remove: bool = True


@dataclass(frozen=True)
class Shards(Mapping[str, Any]):
    """A saved plan: tables (or paths of files) by shard name, in name order, each read on access.

    Attributes:
        fingerprints: the shards, by name.
        read: reads a shard by name and fingerprint, and its checksum if there is one.
        engine: where ``map`` works.
        folder: where the shards are, for messages.
        seconds: how long the run that saved them last took to plan and build what was missing.
        checksums: those of the shards' files, by name; shards of earlier versions have none.
        made_of: the ``digest`` of the store that they are made of; empty in stores of earlier versions.

    """

    fingerprints: Mapping[str, str]
    read: Callable[..., Any]
    engine: Engine = field(default_factory=LocalEngine)
    folder: str = "memory"
    seconds: float = 0.0
    checksums: Mapping[str, str] = field(default_factory=dict)
    made_of: str = ""

    def __getitem__(self, name: str) -> Any:
        return self.reader(name)()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.fingerprints))

    def __len__(self) -> int:
        return len(self.fingerprints)

    @property
    def digest(self) -> str:
        """Identifies the content of all shards."""
        return fingerprint_of(*(part for shard in sorted(self.fingerprints.items()) for part in shard))

    def check_made_of(self, source: "Shards") -> None:
        """Raise RebaseError unless these shards, which refer to those of ``source`` by position, are made of them."""
        if self.made_of not in ("", source.digest):
            raise RebaseError(
                f"{self.folder} was not made of what {source.folder} has now: the run that changed it did not end, or "
                "had fewer pipelines. Build the rest of the datastore: kedro run --pipelines=embed,index."
            )

    def check_cards(self, cards: pd.DataFrame) -> None:
        """Raise RebaseError if the cards, which ``ingest`` saves after these rows, are those of other rows."""
        if cards.attrs.get("made_of", self.digest) != self.digest:
            raise RebaseError(
                f"The cards, which have the licenses, were not made of the rows in {self.folder}: the run that changed "
                "the rows did not end. Make the cards again: kedro run --pipelines=ingest."
            )

    def reader(self, name: str) -> Callable[[], Any]:
        """A function that reads one shard; unlike the mapping, it is small enough to send to another process."""
        return partial(self.read, name, self.fingerprints[name], *filter(None, [self.checksums.get(name)]))

    def map(self, jobs: Mapping[str, Callable[[Any], Result]]) -> Iterator[tuple[str, Result]]:
        """Apply each job to the shard of its name, on the engine; yield ``(name, result)`` in any order."""
        return self.engine.map(_run_job, ((name, self.reader(name), job) for name, job in jobs.items()))

    def first_metadata(self) -> dict[str, Any]:
        """The metadata of the first table."""
        return next(self.map(dict.fromkeys(islice(self, 1), metadata_of)))[1]

    def metadata(self) -> dict[str, dict[str, Any]]:
        """The metadata of each table, in name order."""
        return dict(sorted(self.map(dict.fromkeys(self, metadata_of))))


def _run_job(_: None, item: tuple[str, Callable[[], Any], Callable[[Any], Result]]) -> tuple[str, Result]:
    name, read, job = item
    return name, job(read())


def fingerprint_of(*parts: Any) -> str:
    """SHA-256 of the parts' texts: the fingerprint of a shard that is made of them."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()


def provisional_digest(built: Any) -> str:
    """What identifies the content of a shard that lacks data that could not be read; empty for every other shard.

    The next save builds such a shard again.
    """
    return metadata_of(built).get("provisional") or "" if isinstance(built, pa.Table) else ""


def with_metadata(table: pa.Table, metadata: Mapping[str, Any]) -> pa.Table:
    """The table with the metadata as JSON in its schema."""
    return table.replace_schema_metadata({_METADATA_KEY: json.dumps(metadata).encode()})


def metadata_of(table: pa.Table) -> dict[str, Any]:
    """The metadata that ``with_metadata`` wrote; empty if there is none."""
    metadata: dict[str, Any] = json.loads((table.schema.metadata or {}).get(_METADATA_KEY, "{}"))
    return metadata
