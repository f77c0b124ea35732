"""A table in shards: planned by a node, built one at a time by the store, read back lazily."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import pyarrow as pa

from rebase.datastore.engines import Engine, LocalEngine, Opener

Result = TypeVar("Result")

_METADATA_KEY = b"rebase"


@dataclass(frozen=True)
class Shard:
    """One shard to be: ``build`` makes its table, and is not called where the fingerprint already stands.

    ``build`` may run in another process, so it holds on to nothing but what this one shard needs. In a store of the
    format ``file`` it returns a function that writes a file at a path.
    """

    name: str
    fingerprint: str
    build: Callable[[Any], Any]


@dataclass(frozen=True)
class ShardPlan:
    """All shards of a store. ``opener`` yields what every ``build`` is given, an encoder say; opened only if needed.

    ``threads`` says how many builds may share it at once: many for builds that wait, one for those that use all cores.
    """

    shards: list[Shard]
    opener: Opener = field(default=nullcontext)
    threads: int = 1


@dataclass(frozen=True)
class Shards(Mapping[str, Any]):
    """A stored plan: tables (or paths of files) by shard name, in name order, each read when it is asked for.

    ``read`` takes a name and a fingerprint; ``engine`` is where ``map`` works.
    """

    fingerprints: Mapping[str, str]
    read: Callable[[str, str], Any]
    engine: Engine = field(default_factory=LocalEngine)

    def __getitem__(self, name: str) -> Any:
        return self.later(name)()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.fingerprints))

    def __len__(self) -> int:
        return len(self.fingerprints)

    def later(self, name: str) -> Callable[[], Any]:
        """How to read one shard: small enough to send to another process, as the whole mapping is not."""
        return partial(self.read, name, self.fingerprints[name])

    def map(self, jobs: Mapping[str, Callable[[Any], Result]]) -> Iterator[tuple[str, Result]]:
        """Apply to each named shard its job, where the engine works; yields ``(name, result)`` in any order."""
        return self.engine.map(_work, ((name, self.later(name), job) for name, job in jobs.items()))

    def first_metadata(self) -> dict[str, Any]:
        """What the first table's schema says of it."""
        return next(self.map(dict.fromkeys(islice(self, 1), metadata_of)))[1]

    def metadata(self) -> dict[str, dict[str, Any]]:
        """What each table's schema says of it, in name order."""
        known = dict(self.map(dict.fromkeys(self, metadata_of)))
        return {name: known[name] for name in self}


def _work(_: None, item: tuple[str, Callable[[], Any], Callable[[Any], Result]]) -> tuple[str, Result]:
    name, read, job = item
    return name, job(read())


def is_provisional(built: Any) -> bool:
    """Whether the shard stands in for data that could not be reached: the next save builds it again."""
    known = isinstance(built, pa.Table) and _METADATA_KEY in (built.schema.metadata or {})
    return known and bool(metadata_of(built).get("provisional"))


def with_metadata(table: pa.Table, metadata: Mapping[str, Any]) -> pa.Table:
    """The table with what is to be known about it, as JSON in its schema."""
    return table.replace_schema_metadata({_METADATA_KEY: json.dumps(metadata).encode()})


def metadata_of(table: pa.Table) -> dict[str, Any]:
    """What ``with_metadata`` wrote."""
    metadata: dict[str, Any] = json.loads(table.schema.metadata[_METADATA_KEY])
    return metadata
