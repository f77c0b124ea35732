"""The shard store: tables or files, each complete or missing, in a local folder or any place that fsspec reaches."""

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from fsspec.implementations.local import LocalFileSystem
from kedro.io import AbstractDataset, DatasetError
from pyarrow import ipc
from tqdm import tqdm

from rebase.datasets.previews import TablePreview
from rebase.datastore.engines import open_engine
from rebase.datastore.shards import Shard, ShardPlan, Shards, is_provisional
from rebase.errors import RebaseError
from rebase.files import replacing_file

logger = logging.getLogger(__name__)

Format = Literal["parquet", "arrow", "file"]

_MANIFEST = "manifest.json"
_LOCK = ".lock"
#: File systems allow 255 bytes; the fingerprint and temporary suffixes need some of them.
_MAX_NAME = 150
_RETRY = "retry-"


class ShardFolder:
    """The folder and file format of a store's shards; small, because every worker gets one.

    ``root`` is the path of the folder in its file system ``fs``, which is opened with ``options``.
    """

    def __init__(self, path: str, file_format: Format, options: dict[str, Any]) -> None:
        self.path = path
        self.file_format = file_format
        self._options = options
        self.fs, self.root = fsspec.core.url_to_fs(path, **options)
        self.is_local = isinstance(self.fs, LocalFileSystem)

    def file(self, name: str, fingerprint: str) -> str:
        """The name of a shard's file, which contains its fingerprint."""
        safe = quote(name, safe="")
        if len(safe) > _MAX_NAME:
            safe = f"{safe[:_MAX_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        return f"{safe}.{fingerprint[:16]}.{self.file_format}"

    def files(self) -> set[str]:
        """The names of all files of the folder, from one listing."""
        self.fs.invalidate_cache(self.root)
        try:
            with self._remote_errors():
                return {Path(path).name for path in self.fs.ls(self.root, detail=False)}
        except FileNotFoundError:
            return set()

    def content(self, file: str) -> bytes:
        """The content of a file. Raises FileNotFoundError if it is missing."""
        with self._remote_errors():
            content: bytes = self.fs.cat_file(f"{self.root}/{file}")
        return content

    @contextmanager
    def replacing(self, file: str) -> Iterator[Path]:
        """Yield a local path; if the block succeeds, the file becomes the folder's.

        Raises RebaseError if it cannot be written: no space, no permission.
        """
        try:
            if self.is_local:
                with replacing_file(Path(self.root) / file) as temporary:
                    yield temporary
            else:
                # Written locally, then sent at once: an object store shows an object only when it is complete.
                with tempfile.TemporaryDirectory() as folder:
                    yield Path(folder) / "part"
                    with self._remote_errors():
                        self.fs.put_file(str(Path(folder) / "part"), f"{self.root}/{file}")
        except OSError as error:
            raise RebaseError(
                f"{self.path}: {file} cannot be written: {error}. Earlier files are kept: make room, or set another "
                "folder, and run again."
            ) from error

    def write(self, built: Any, file: str) -> None:
        """Write the result of a build to a file of this name."""
        with self.replacing(file) as path:
            if self.file_format == "parquet":
                pq.write_table(built, path)
            elif self.file_format == "arrow":
                with pa.OSFile(str(path), "wb") as sink, ipc.new_file(sink, built.schema) as writer:
                    writer.write_table(built)
            else:
                built(path)

    def read(self, name: str, fingerprint: str) -> Any:
        """A shard's table; local Arrow files are memory-mapped. In the format ``file``, a local path."""
        file = self.file(name, fingerprint)
        path = f"{self.root}/{file}"
        if self.file_format == "file":
            return Path(path) if self.is_local else self._download(path)
        if self.is_local and self.file_format == "arrow":
            status = Path(path).stat()
            return _memory_map(path, status.st_ino, status.st_mtime_ns)
        source = path if self.is_local else pa.BufferReader(self.content(file))
        if self.file_format == "arrow":
            return ipc.open_file(source).read_all()
        # Not read_table, which reads KEY=VALUE in a folder's name as a column.
        with pq.ParquetFile(source) as parquet:
            return parquet.read()

    def _download(self, path: str) -> Path:
        """A copy of a remote file in the user's cache; the name identifies the content, so it is reused."""
        url = f"{self._options.get('client_kwargs')} {self.fs.unstrip_protocol(path)}"
        copy = Path.home() / ".cache" / "rebase" / hashlib.sha256(url.encode()).hexdigest()
        if not copy.exists():
            with replacing_file(copy) as temporary, self._remote_errors():
                self.fs.get_file(path, str(temporary))
        return copy

    @contextmanager
    def _remote_errors(self) -> Iterator[None]:
        """Turn the errors of remote file systems, each with its own types, into a RebaseError."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            raise RebaseError(
                f"{self.path} cannot be reached: {error}. Check the address, the network and the credentials "
                "`datastores` (conf/README.md), then run again: the run resumes."
            ) from error


@lru_cache(maxsize=4096)
def _memory_map(path: str, _inode: int, _changed: int) -> pa.Table:
    """The memory-mapped table of a local file; cached, because a search opens the same shards several times."""
    return ipc.open_file(pa.memory_map(path)).read_all()


class ShardStore(AbstractDataset[ShardPlan, Shards]):
    """Saves a ``ShardPlan``, loads ``Shards``.

    Each shard is one file, written atomically, whose name contains its fingerprint. Shards whose file exists are not
    built, so an interrupted run resumes. The manifest is written last and lists the shards of the store: ``exists`` is
    true if it and all of its shards are there.

    A provisional shard, of data that could not be read, gets another fingerprint than its plan's, so that the
    next save builds it again; it never replaces an earlier good one.
    """

    def __init__(
        self,
        filepath: str,
        file_format: Format = "parquet",
        engine: dict[str, Any] | None = None,
        credentials: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._folder = ShardFolder(filepath, file_format, credentials or {})
        self._engine = open_engine(engine or {})
        self.metadata = metadata

    def load(self) -> Shards:
        manifest = self._complete_manifest()
        if not manifest:
            raise DatasetError(
                f"{self._folder.path} is missing or not complete. Run the pipeline that writes it; it resumes. "
                "The whole datastore: kedro run --pipelines=ingest,embed,index."
            )
        fingerprints, seconds = manifest
        return Shards(fingerprints, self._folder.read, self._engine, self._folder.path, seconds)

    def preview(self, nrows: int = 30) -> TablePreview:
        """At most ``nrows`` rows for kedro-viz, from as many shards as possible."""
        shards = self.load()
        first = islice(shards.values(), nrows)
        rows = pa.concat_tables(table.slice(0, max(1, nrows // len(shards))) for table in first)
        return TablePreview(rows.to_pandas().to_dict(orient="split"))

    def save(self, plan: ShardPlan) -> None:
        started = time.monotonic()
        with self._locked():
            files = self._folder.files()
            listed, _ = self._manifest() or ({}, 0.0)
            earlier = {
                name: fingerprint
                for name, fingerprint in listed.items()
                if not fingerprint.startswith(_RETRY) and self._folder.file(name, fingerprint) in files
            }
            fingerprints = {shard.name: shard.fingerprint for shard in plan.shards}
            missing = [shard for shard in plan.shards if self._folder.file(shard.name, shard.fingerprint) not in files]
            if missing:
                if changed := sum(shard.name in earlier for shard in missing):
                    logger.info(
                        "%s: %d of %d shards are rebuilt, because their data, their settings or the version of their "
                        "format changed", self._folder.path, changed, len(plan.shards)
                    )  # fmt: skip
                items = ((shard, earlier.get(shard.name)) for shard in missing)
                built = self._engine.map(partial(_build, self._folder), items, plan.opener, plan.threads)
                fingerprints |= dict(tqdm(built, desc=Path(self._folder.path).name, unit="shard", total=len(missing)))
            seconds = round(plan.seconds + time.monotonic() - started, 3)
            with self._folder.replacing(_MANIFEST) as path:
                path.write_text(json.dumps({"seconds": seconds, "shards": fingerprints}, indent=1))
            # Shards that are no longer in the store, and temporary files of interrupted saves, are removed.
            current = {_MANIFEST, _LOCK, *(self._folder.file(*item) for item in fingerprints.items())}
            for file in self._folder.files() - current:
                if file.startswith(".") or file.endswith(f".{self._folder.file_format}"):
                    self._folder.fs.rm_file(f"{self._folder.root}/{file}")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes of this machine from writing to the folder; remote folders have no lock."""
        if not self._folder.is_local:
            yield
            return
        Path(self._folder.root).mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(Path(self._folder.root) / _LOCK, timeout=0):
                yield
        except Timeout:
            raise RebaseError(
                f"{self._folder.path}: another run is writing to it. Wait until it has ended, then run again."
            ) from None

    def _exists(self) -> bool:
        return self._complete_manifest() is not None

    def _manifest(self) -> tuple[dict[str, str], float] | None:
        """The fingerprints of the store's shards by name, and the seconds of the last save; None before it."""
        try:
            content = json.loads(self._folder.content(_MANIFEST))
        except FileNotFoundError:
            return None
        if isinstance(content.get("shards"), dict):
            return content["shards"], content["seconds"]
        return content, 0.0  # Manifests of earlier versions have the shards only.

    def _complete_manifest(self) -> tuple[dict[str, str], float] | None:
        """The manifest; None if it is missing, or one of its shards."""
        manifest = self._manifest()
        if manifest and {self._folder.file(*item) for item in manifest[0].items()} <= self._folder.files():
            return manifest
        return None

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._folder.path, "file_format": self._folder.file_format}


def _build(folder: ShardFolder, tool: Any, item: tuple[Shard, str | None]) -> tuple[str, str]:
    """Build and write one shard; return its name and fingerprint, or those of an earlier good shard that is kept."""
    shard, earlier = item
    built = shard.build(tool)
    fingerprint = shard.fingerprint
    if is_provisional(built):
        if earlier is not None:
            logger.warning("%s could not be read again: the earlier rows are kept", shard.name)
            return shard.name, earlier
        fingerprint = f"{_RETRY}{fingerprint}"
    folder.write(built, folder.file(shard.name, fingerprint))
    return shard.name, fingerprint
