"""A table in shards: planned by a node, built one at a time by the store, read back lazily."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

_METADATA_KEY = b"rebase"


@dataclass(frozen=True)
class Shard:
    """One shard to be: ``build`` makes its table, and is not called where the fingerprint already stands."""

    name: str
    fingerprint: str
    build: Callable[[Any], pa.Table]


@dataclass(frozen=True)
class ShardPlan:
    """All shards of a store. ``open`` yields what every ``build`` is given, an encoder say; opened only if needed."""

    shards: list[Shard]
    open: Callable[[], AbstractContextManager[Any]] = field(default=nullcontext)


@dataclass(frozen=True)
class Shards(Mapping[str, pa.Table]):
    """A stored plan: tables by shard name, in name order, each read when it is asked for."""

    fingerprints: Mapping[str, str]
    read: Callable[[str], pa.Table]

    def __getitem__(self, name: str) -> pa.Table:
        if name not in self.fingerprints:
            raise KeyError(name)
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.fingerprints))

    def __len__(self) -> int:
        return len(self.fingerprints)


def is_provisional(table: pa.Table) -> bool:
    """Whether the shard stands in for data that could not be reached: the next save builds it again."""
    return _METADATA_KEY in (table.schema.metadata or {}) and bool(metadata_of(table).get("provisional"))


def with_metadata(table: pa.Table, metadata: Mapping[str, Any]) -> pa.Table:
    """The table with what is to be known about it, as JSON in its schema."""
    return table.replace_schema_metadata({_METADATA_KEY: json.dumps(metadata).encode()})


def metadata_of(table: pa.Table) -> dict[str, Any]:
    """What ``with_metadata`` wrote."""
    metadata: dict[str, Any] = json.loads(table.schema.metadata[_METADATA_KEY])
    return metadata
