"""The shard store: tables or files, each whole or not there, in a local folder or any place that fsspec reaches."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeGuard
from urllib.parse import quote

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from fsspec.implementations.local import LocalFileSystem
from kedro.io import AbstractDataset, DatasetError
from kedro_datasets._typing import TablePreview
from pyarrow import ipc
from tqdm import tqdm

from rebase.datastore.engines import open_engine
from rebase.datastore.shards import Shard, ShardPlan, Shards, is_provisional
from rebase.errors import RebaseError
from rebase.files import replacing_file

logger = logging.getLogger(__name__)

Format = Literal["parquet", "arrow", "file"]

_MANIFEST = "manifest.json"
_LOCK = ".lock"
#: File systems allow 255 bytes; fingerprint and temporary ending need some of them.
_MAX_NAME = 150
_RETRY = "retry-"


@dataclass(frozen=True)
class ShardFolder:
    """Where the shards of one store are, and in which format; small, and sent to whoever reads or builds one."""

    path: str
    file_format: Format
    options: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The file system, with the options that were given for it."""
        return self._place[0]

    @property
    def root(self) -> str:
        """The folder, as its file system calls it."""
        return self._place[1]

    @cached_property
    def _place(self) -> tuple[fsspec.AbstractFileSystem, str]:
        return fsspec.core.url_to_fs(self.path, **self.options)

    @property
    def local(self) -> bool:
        """Whether this machine's own files hold it."""
        return isinstance(self.fs, LocalFileSystem)

    def file(self, name: str, fingerprint: str) -> str:
        """The name of a shard's file, which carries its fingerprint."""
        safe = quote(name, safe="")
        if len(safe) > _MAX_NAME:
            safe = f"{safe[:_MAX_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        return f"{safe}.{fingerprint[:16]}.{self.file_format}"

    def files(self) -> set[str]:
        """The names of all files of the folder, by one listing."""
        fs = self.fs
        fs.invalidate_cache(self.root)
        try:
            with self._reaching():
                return {Path(path).name for path in fs.ls(self.root, detail=False)}
        except FileNotFoundError:
            return set()

    def remove(self, file: str) -> None:
        """Delete a file."""
        self.fs.rm_file(f"{self.root}/{file}")

    def read_text(self, file: str) -> str | None:
        """A small file's text; None where there is none."""
        try:
            return self._content(f"{self.root}/{file}").decode()
        except FileNotFoundError:
            return None

    @contextmanager
    def replacing(self, file: str) -> Iterator[Path]:
        """Yield a local path; when the block ends well, what was written there is the folder's file, whole.

        Raises RebaseError where it cannot be written: no space, no permission.
        """
        try:
            if self.local:
                with replacing_file(Path(self.root) / file) as temporary:
                    yield temporary
            else:
                # Written here, then sent in one piece: an object store shows an object only when it has all of it.
                with tempfile.TemporaryDirectory() as folder:
                    yield Path(folder) / "part"
                    with self._reaching():
                        self.fs.put_file(str(Path(folder) / "part"), f"{self.root}/{file}")
        except OSError as error:
            raise RebaseError(
                f"{self.path}: {file} cannot be written: {error}. What was written before is kept: make room, or set "
                "another folder, and run again."
            ) from error

    def write(self, built: Any, file: str) -> None:
        """Write what a build returned under the file's name."""
        with self.replacing(file) as path:
            if self.file_format == "parquet":
                pq.write_table(built, path)
            elif self.file_format == "arrow":
                with pa.OSFile(str(path), "wb") as sink, ipc.new_file(sink, built.schema) as writer:
                    writer.write_table(built)
            else:
                built(path)

    def read(self, name: str, fingerprint: str) -> Any:
        """A shard's table; local Arrow files are memory-mapped. Of the format ``file``, a local path."""
        path = f"{self.root}/{self.file(name, fingerprint)}"
        if self.file_format == "file":
            return Path(path) if self.local else self._fetched(path)
        if self.local and self.file_format == "arrow":
            known = Path(path).stat()
            return _mapped(path, known.st_ino, known.st_mtime_ns)
        source = path if self.local else pa.BufferReader(self._content(path))
        if self.file_format == "arrow":
            return ipc.open_file(source).read_all()
        # Not read_table: it takes KEY=VALUE in a folder's name for a column.
        with pq.ParquetFile(source) as parquet:
            return parquet.read()

    def _fetched(self, path: str) -> Path:
        """A copy of a distant file in the user's cache, kept for the next time: the file's name says its content."""
        where = f"{self.options.get('client_kwargs')} {self.fs.unstrip_protocol(path)}"
        copy = Path.home() / ".cache" / "rebase" / hashlib.sha256(where.encode()).hexdigest()
        if not copy.exists():
            with replacing_file(copy) as temporary, self._reaching():
                self.fs.get_file(path, str(temporary))
        return copy

    def _content(self, path: str) -> bytes:
        with self._reaching():
            content: bytes = self.fs.cat_file(path)
        return content

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Errors of distant file systems, each with types of its own, as one that says what to do."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            raise RebaseError(
                f"{self.path} cannot be reached: {error}. Check the address, the network and the credentials "
                "`datastores` (conf/README.md), then run again: it goes on."
            ) from error


@lru_cache(maxsize=4096)
def _mapped(path: str, _inode: int, _changed: int) -> pa.Table:
    """The memory-mapped table of a local file; kept, since a search opens the same shards again and again."""
    return ipc.open_file(pa.memory_map(path)).read_all()


class ShardStore(AbstractDataset[ShardPlan, Shards]):
    """Saves a ``ShardPlan``, loads ``Shards``.

    Each shard is one file whose name carries its fingerprint, written under a temporary name and renamed. A shard whose
    file stands is not built again, so a killed run goes on where it was. The manifest, written last, names the shards
    that belong to the store: ``exists`` is true only when it and all of them are there.

    A provisional shard, of data that could not be reached, is kept under another fingerprint than its plan's, so that
    the next save builds it again; it never takes the place of an earlier good one.
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
        manifest = self._manifest()
        if not self._is_whole(manifest):
            raise DatasetError(
                f"{self._folder.path} is not whole, or not there yet: run the pipeline that writes it; it goes on "
                "where it was."
            )
        return Shards(manifest, self._folder.read, self._engine)

    def preview(self, nrows: int = 30) -> TablePreview:
        """So many rows as kedro-viz shows them, of as many shards as can be."""
        shards = self.load()
        first = islice(shards.values(), nrows)
        rows = pa.concat_tables(table.slice(0, max(1, nrows // len(shards))) for table in first)
        return TablePreview(rows.to_pandas().to_dict(orient="split"))

    def save(self, plan: ShardPlan) -> None:
        with self._locked():
            there = self._folder.files()
            earlier = {
                name: fingerprint
                for name, fingerprint in (self._manifest() or {}).items()
                if not fingerprint.startswith(_RETRY) and self._folder.file(name, fingerprint) in there
            }
            missing = [shard for shard in plan.shards if self._folder.file(shard.name, shard.fingerprint) not in there]
            fingerprints = {shard.name: shard.fingerprint for shard in plan.shards}
            if missing:
                items = ((shard, earlier.get(shard.name)) for shard in missing)
                built = self._engine.map(partial(_build, self._folder), items, plan.opener, plan.threads)
                fingerprints |= dict(tqdm(built, desc=Path(self._folder.path).name, unit="shard", total=len(missing)))
            with self._folder.replacing(_MANIFEST) as path:
                path.write_text(json.dumps(fingerprints, indent=1))
            self._remove_stale({self._folder.file(*item) for item in fingerprints.items()})

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes of this machine from writing to the folder; distant folders have no lock."""
        if not self._folder.local:
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

    def _remove_stale(self, current: set[str]) -> None:
        """Remove the shards that no longer belong, and what a killed save was writing."""
        for file in self._folder.files() - current - {_MANIFEST, _LOCK}:
            if file.startswith(".") or file.endswith(f".{self._folder.file_format}"):
                self._folder.remove(file)

    def _exists(self) -> bool:
        return self._is_whole(self._manifest())

    def _is_whole(self, manifest: dict[str, str] | None) -> TypeGuard[dict[str, str]]:
        return manifest is not None and {self._folder.file(*item) for item in manifest.items()} <= self._folder.files()

    def _manifest(self) -> dict[str, str] | None:
        text = self._folder.read_text(_MANIFEST)
        return None if text is None else json.loads(text)

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._folder.path, "file_format": self._folder.file_format}


def _build(folder: ShardFolder, tool: Any, item: tuple[Shard, str | None]) -> tuple[str, str]:
    """Build and write one shard; its name, and the fingerprint under which it, or an earlier good one, is kept."""
    shard, earlier = item
    built = shard.build(tool)
    fingerprint = shard.fingerprint
    if is_provisional(built):
        if earlier is not None:
            logger.warning("%s could not be read again: what was read before is kept", shard.name)
            return shard.name, earlier
        fingerprint = f"{_RETRY}{fingerprint}"
    folder.write(built, folder.file(shard.name, fingerprint))
    return shard.name, fingerprint
