"""The shard store: a table in Parquet files, whole or not there."""

import hashlib
import json
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from kedro.io import AbstractDataset, DatasetError
from tqdm import tqdm

from rebase.files import replacing_file
from rebase.shards import ShardPlan, Shards, is_provisional

_MANIFEST = "manifest.json"
#: File systems allow 255 bytes; fingerprint and temporary ending need some of them.
_MAX_NAME = 150


class ShardStore(AbstractDataset[ShardPlan, Shards]):
    """Saves a ``ShardPlan``, loads ``Shards``.

    Each shard is one Parquet file whose name carries its fingerprint, written under a temporary name and renamed.
    A shard whose file stands is not built again, so a killed run goes on where it was. The manifest, written last,
    names the shards that belong to the store: ``exists`` is true only when it and all of them are there.
    A provisional shard is kept under another fingerprint than its plan's, so that the next save builds it again.
    """

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._folder = Path(filepath)
        self.metadata = metadata

    def load(self) -> Shards:
        if not self._exists():
            raise DatasetError(f"{self._folder} is not whole: run the pipeline that writes it again, it goes on.")
        fingerprints = self._manifest()
        return Shards(fingerprints, lambda name: self._read(self._path(name, fingerprints[name])))

    def save(self, plan: ShardPlan) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        fingerprints = {shard.name: shard.fingerprint for shard in plan.shards}
        missing = [shard for shard in plan.shards if not self._path(shard.name, shard.fingerprint).exists()]
        if missing:
            with plan.open() as tool:
                for shard in tqdm(missing, desc=self._folder.name, unit="dataset"):
                    table = shard.build(tool)
                    if is_provisional(table):
                        fingerprints[shard.name] = f"retry-{shard.fingerprint}"
                    with replacing_file(self._path(shard.name, fingerprints[shard.name])) as temporary:
                        pq.write_table(table, temporary)
        with replacing_file(self._folder / _MANIFEST) as temporary:
            temporary.write_text(json.dumps(fingerprints, indent=1))
        self._remove_stale({self._path(*item) for item in fingerprints.items()})

    def _remove_stale(self, current: set[Path]) -> None:
        """Remove the shards that no longer belong, and what a killed save was writing."""
        unfinished = self._folder.glob(".*.parquet-*"), self._folder.glob(f".{_MANIFEST}-*")
        for file in {*self._folder.glob("*.parquet"), *chain(*unfinished)} - current:
            file.unlink()

    @staticmethod
    def _read(file: Path) -> pa.Table:
        # Not read_table: it takes KEY=VALUE in a folder's name for a column.
        with pq.ParquetFile(file) as parquet:
            return parquet.read()

    def _exists(self) -> bool:
        manifest = self._manifest()
        return manifest is not None and all(self._path(*item).exists() for item in manifest.items())

    def _manifest(self) -> Any:
        path = self._folder / _MANIFEST
        return json.loads(path.read_text()) if path.exists() else None

    def _path(self, name: str, fingerprint: str) -> Path:
        safe = quote(name, safe="")
        if len(safe) > _MAX_NAME:
            safe = f"{safe[:_MAX_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        return self._folder / f"{safe}.{fingerprint[:16]}.parquet"

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._folder)}
