"""The shard store: a table in Parquet files, whole or not there."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq
from kedro.io import AbstractDataset, DatasetError
from tqdm import tqdm

from rebase.files import replacing_file
from rebase.shards import Shard, ShardPlan, Shards

_MANIFEST = "manifest.json"


class ShardStore(AbstractDataset[ShardPlan, Shards]):
    """Saves a ``ShardPlan``, loads ``Shards``.

    Each shard is one Parquet file whose name carries its fingerprint, written under a temporary name and renamed.
    A shard whose file stands is not built again, so a killed run goes on where it was. The manifest, written last,
    names the shards that belong to the store: ``exists`` is true only when it and all of them are there.
    """

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._folder = Path(filepath)
        self.metadata = metadata

    def load(self) -> Shards:
        if not self._exists():
            raise DatasetError(f"{self._folder} is not whole: run the pipeline that writes it again, it goes on.")
        return Shards(self._manifest(), lambda name: pq.read_table(self._path(name, self._manifest()[name])))

    def save(self, plan: ShardPlan) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        missing = [shard for shard in plan.shards if not self._path(shard.name, shard.fingerprint).exists()]
        if missing:
            with plan.open() as tool:
                for shard in tqdm(missing, desc=self._folder.name, unit="dataset"):
                    with replacing_file(self._path(shard.name, shard.fingerprint)) as temporary:
                        pq.write_table(shard.build(tool), temporary)
        with replacing_file(self._folder / _MANIFEST) as temporary:
            temporary.write_text(json.dumps({shard.name: shard.fingerprint for shard in plan.shards}, indent=1))
        self._remove_stale(plan.shards)

    def _remove_stale(self, shards: list[Shard]) -> None:
        current = {self._path(shard.name, shard.fingerprint) for shard in shards}
        for file in self._folder.glob("*.parquet"):
            if file not in current:
                file.unlink()

    def _exists(self) -> bool:
        manifest = self._manifest()
        return manifest is not None and all(self._path(*item).exists() for item in manifest.items())

    def _manifest(self) -> Any:
        path = self._folder / _MANIFEST
        return json.loads(path.read_text()) if path.exists() else None

    def _path(self, name: str, fingerprint: str) -> Path:
        return self._folder / f"{quote(name, safe='')}.{fingerprint[:16]}.parquet"

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._folder)}
