"""The shard store: tables or files, each complete or missing, in a local folder or any place that fsspec reaches."""

import hashlib
import json
import logging
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import quote, unquote

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from filelock import FileLock, Timeout
from fsspec.implementations.local import LocalFileSystem
from kedro.io import AbstractDataset
from pyarrow import ipc
from tqdm import tqdm

from rebase.datasets.checked import FileError
from rebase.datasets.previews import TablePreview
from rebase.datastore.engines import open_engine
from rebase.datastore.shards import Shard, ShardPlan, Shards, fingerprint_of, provisional_digest
from rebase.errors import RebaseError
from rebase.files import DOWNLOADS, checksum, replacing_file, temporary_file

logger = logging.getLogger(__name__)

Format = Literal["parquet", "arrow", "file"]

_MANIFEST = "manifest.json"
_LOCK = ".lock"
#: File systems allow 255 bytes; the fingerprint and temporary suffixes need some of them.
_MAX_NAME = 150
_RETRY = "retry-"
#: At the end of a file's name; fingerprints before it have no hyphen there.
_CHECKSUM = re.compile(r"-([0-9a-f]{16})$")
#: Threads that verify checksums: they wait for the disk or the network.
_VERIFIERS = 4


class DamagedShardError(RebaseError):
    """A shard's file is missing or damaged."""


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

    def stem(self, name: str, fingerprint: str) -> str:
        """The name of a shard's file, without its checksum and format; it contains the fingerprint."""
        return f"{self.quoted(name)}.{fingerprint[:16]}"

    def quoted(self, name: str) -> str:
        """The name of a shard as it is in the name of its file."""
        safe = quote(name, safe="")
        if len(safe) > _MAX_NAME:
            safe = f"{safe[:_MAX_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        return safe

    def file(self, stem: str, digest: str) -> str:
        """The name of a shard's file, which ends with its checksum; files of earlier versions have none."""
        return f"{stem}{digest and f'-{digest}'}.{self.file_format}"

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
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a local temporary path for ``put``.

        Raises RebaseError if it cannot be written: no space, no permission.
        """
        try:
            if self.is_local:
                with temporary_file(Path(self.root), name) as temporary:
                    yield temporary
            else:
                with tempfile.TemporaryDirectory() as folder:
                    yield Path(folder) / "part"
        except OSError as error:
            raise RebaseError(
                f"{self.path}: {name} cannot be written: {error}. Earlier files are kept: make room, or set another "
                "folder, and run again."
            ) from error

    def put(self, temporary: Path, file: str) -> None:
        """Make the temporary file the folder's: at once, so that an interrupted run leaves no part of it."""
        if self.is_local:
            temporary.replace(Path(self.root) / file)
        else:
            with self._remote_errors():
                self.fs.put_file(str(temporary), f"{self.root}/{file}")

    def write(self, built: Any, stem: str) -> str:
        """Write the result of a build to a file of this stem; return its checksum."""
        with self.writing(stem) as path:
            if self.file_format == "parquet":
                pq.write_table(built, path)
            elif self.file_format == "arrow":
                with pa.OSFile(str(path), "wb") as sink, ipc.new_file(sink, built.schema) as writer:
                    writer.write_table(built)
            else:
                built(path)
            digest = checksum(path)
            self.put(path, self.file(stem, digest))
        return digest

    def read(self, name: str, fingerprint: str, digest: str = "") -> Any:
        """A shard's table; local Arrow files are memory-mapped. In the format ``file``, a local path.

        Raises RebaseError if the file is damaged.
        """
        return self.open(self.file(self.stem(name, fingerprint), digest), digest)

    def parts(self, file: str) -> tuple[str, str]:
        """The stem and the checksum in the name of a shard's file."""
        stem = file.removesuffix(f".{self.file_format}")
        match = _CHECKSUM.search(stem)
        return (stem[: match.start()], match[1]) if match else (stem, "")

    def is_intact(self, file: str) -> bool:
        """Whether a file has its checksum, or can be opened if it has none."""
        digest = self.parts(file)[1]
        try:
            (self._verify if digest else self.open)(file, digest)
        except DamagedShardError:
            return False
        return True

    def open(self, file: str, digest: str) -> Any:
        """The table or the local path of a file, as ``read`` returns it. Raises DamagedShardError."""
        source = self._verify(file, digest)
        try:
            if self.file_format == "file":
                return source
            if self.file_format == "arrow":
                return _memory_map(source) if isinstance(source, Path) else ipc.open_file(source).read_all()
            # Not read_table, which reads KEY=VALUE in a folder's name as a column.
            with pq.ParquetFile(source if isinstance(source, Path) else pa.BufferReader(source)) as parquet:
                return parquet.read()
        except (OSError, pa.ArrowException) as error:
            raise self.damaged(file, error) from error

    def _verify(self, file: str, digest: str) -> Path | bytes:
        """The local path or the content of a file that has its checksum. Raises DamagedShardError if it has another."""
        source: Path | bytes
        try:
            if self.is_local:
                source = Path(self.root) / file
            else:
                source = self._download(file, digest) if self.file_format == "file" else self.content(file)
            digest_now = digest and (checksum(source) if isinstance(source, Path) else xxhash.xxh3_64_hexdigest(source))
        except OSError as error:
            raise self.damaged(file, error) from error
        if digest_now != digest:
            raise self.damaged(file, "its content is not what was written")
        return source

    def _download(self, file: str, digest: str) -> Path:
        """A copy of a remote file in the user's cache; the name identifies the content, so it is reused."""
        path = f"{self.root}/{file}"
        url = f"{self._options.get('client_kwargs')} {self.fs.unstrip_protocol(path)}"
        copy = DOWNLOADS / hashlib.sha256(url.encode()).hexdigest()
        if not copy.exists() or (digest and checksum(copy) != digest):
            with replacing_file(copy) as temporary, self._remote_errors():
                self.fs.get_file(path, str(temporary))
        return copy

    def damaged(self, file: str, cause: object) -> DamagedShardError:
        """The error about a damaged file."""
        return DamagedShardError(
            f"{self.path}/{file} is damaged: {cause}. Run the pipeline that writes it: it builds the shards that are "
            "damaged or missing. The whole datastore: kedro run --pipelines=ingest,embed,index."
        )

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


def _memory_map(path: Path) -> pa.Table:
    status = path.stat()
    return _cached_memory_map(path, status.st_ino, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _cached_memory_map(path: Path, _inode: int, _changed: int) -> pa.Table:
    """The memory-mapped table of a local file; cached, because a search opens the same shards several times."""
    return ipc.open_file(pa.memory_map(str(path))).read_all()


class ShardStore(AbstractDataset[ShardPlan, Shards]):
    """Saves a ``ShardPlan``, loads ``Shards``.

    Each shard is one file, written atomically, whose name contains its fingerprint. Shards whose file exists are not
    built, so an interrupted run resumes. The manifest is written last and lists the shards of the store: ``exists`` is
    true if it and all of its shards are there.

    A provisional shard, which lacks data that could not be read, gets another fingerprint than its plan's, made of its
    content, so that the next save builds it again. It never replaces an earlier good one.
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
        try:
            manifest, problem = self._complete_manifest(), "is missing or not complete"
        except ValueError as error:
            manifest, problem = None, f"has a damaged {_MANIFEST}: {error}"
        if not manifest:
            raise FileError(
                f"{self._folder.path} {problem}. Run the pipeline that writes it; it resumes. The whole datastore: "
                "kedro run --pipelines=ingest,embed,index."
            )
        read, engine, path = self._folder.read, self._engine, self._folder.path
        return Shards(manifest.shards, read, engine, path, manifest.seconds, manifest.checksums, manifest.made_of)

    def preview(self, nrows: int = 30) -> TablePreview:
        """At most ``nrows`` rows for kedro-viz, from as many shards as possible."""
        shards = self.load()
        first = islice(shards.values(), nrows)
        rows = pa.concat_tables(table.slice(0, max(1, nrows // len(shards))) for table in first)
        return TablePreview(rows.to_pandas().to_dict(orient="split"))

    def save(self, plan: ShardPlan) -> None:
        started = time.monotonic()
        with self._locked():
            try:
                listed = self._manifest()
            except ValueError as error:
                logger.warning("%s: %s is damaged and is written again: %s", self._folder.path, _MANIFEST, error)
                listed = None
            if not plan.may_remove:
                self._check_removes_none(plan)
            intact, damaged = self._verify()
            if damaged:
                shown = ", ".join(damaged[:5])
                logger.warning("%s: %d damaged shards are built again: %s", self._folder.path, len(damaged), shown)

            def find(shards: Mapping[str, str]) -> dict[str, tuple[str, str]]:
                stems = {name: self._folder.stem(name, fingerprint) for name, fingerprint in shards.items()}
                return {name: (shards[name], intact[stem]) for name, stem in stems.items() if stem in intact}

            saved = find({shard.name: shard.fingerprint for shard in plan.shards})
            if missing := [shard for shard in plan.shards if shard.name not in saved]:
                earlier = find({n: f for n, f in listed.shards.items() if not f.startswith(_RETRY)}) if listed else {}
                if changed := sum(shard.name in earlier for shard in missing):
                    logger.info(
                        "%s: %d of %d shards are rebuilt, because their data, their settings or the version of their "
                        "format changed", self._folder.path, changed, len(plan.shards)
                    )  # fmt: skip
                items = ((shard, earlier.get(shard.name)) for shard in missing)
                built = self._engine.map(partial(_build, self._folder), items, plan.opener, plan.threads)
                saved |= dict(tqdm(built, desc=Path(self._folder.path).name, unit="shard", total=len(missing)))
            seconds = round(plan.seconds + time.monotonic() - started, 3)
            manifest = _Manifest(
                {name: fingerprint for name, (fingerprint, _) in saved.items()},
                {name: digest for name, (_, digest) in saved.items() if digest},
                seconds,
                plan.made_of,
            )
            with self._folder.writing(_MANIFEST) as path:
                path.write_text(manifest.to_json())
                self._folder.put(path, _MANIFEST)
            # Shards that are no longer in the store, and temporary files of interrupted saves, are removed.
            for file in self._folder.files() - self._files_of(manifest) - {_MANIFEST, _LOCK}:
                if file.startswith(".") or file.endswith(f".{self._folder.file_format}"):
                    self._folder.fs.rm_file(f"{self._folder.root}/{file}")

    @property
    def is_begun(self) -> bool:
        """Whether there are files, also if the store is not complete."""
        return bool(self._folder.files() - {_LOCK})

    def problem(self) -> str:
        """What is wrong with the store, and what to do; empty if nothing is. All of it is read."""
        try:
            self.load()
        except FileError as error:
            return str(error)
        _, damaged = self._verify()
        return str(self._folder.damaged(", ".join(damaged[:5]), "not what was written")) if damaged else ""

    def _check_removes_none(self, plan: ShardPlan) -> None:
        """Raise RebaseError if a shard with a file, also of an interrupted save without a manifest, is not planned."""
        stems = (self._folder.parts(file)[0] for file in self._shard_files())
        names = {stem.rpartition(".")[0] for stem in stems}
        if removed := sorted(names.difference(self._folder.quoted(shard.name) for shard in plan.shards)):
            shown = ", ".join(map(unquote, removed[:5])) + ", …" * (len(removed) > 5)
            raise RebaseError(
                f"{self._folder.path}: `sources` no longer names {len(removed)} of its {len(names)} "
                f"datasets, which would be removed: {shown}. Each run names all sources of its datastore: name "
                "these as well, set another `datastore`, or remove them: --params=ingest.remove=true."
            )

    def _shard_files(self) -> list[str]:
        return sorted(file for file in self._folder.files() if file.endswith(f".{self._folder.file_format}"))

    def _verify(self) -> tuple[dict[str, str], list[str]]:
        """The checksums of the intact shards by the stems of their files, and the names of damaged files."""
        files = self._shard_files()
        verified = self._engine.map(partial(_is_intact, self._folder), files, threads=_VERIFIERS)
        bar = tqdm(verified, desc=f"{Path(self._folder.path).name}: checksums", unit="shard", total=len(files), delay=3)
        intact = {file for file, is_intact in bar if is_intact}
        damaged = [file for file in files if file not in intact]
        return dict(self._folder.parts(file) for file in intact), damaged

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
        with suppress(ValueError):
            return self._complete_manifest() is not None
        return False

    def _manifest(self) -> "_Manifest | None":
        """The manifest; None before the first save. Raises ValueError if it is damaged."""
        try:
            return _Manifest.from_json(self._folder.content(_MANIFEST))
        except FileNotFoundError:
            return None

    def _complete_manifest(self) -> "_Manifest | None":
        """The manifest; None if it is missing, or one of its shards. Raises ValueError if it is damaged."""
        manifest = self._manifest()
        return manifest if manifest and self._files_of(manifest) <= self._folder.files() else None

    def _files_of(self, manifest: "_Manifest") -> set[str]:
        stem, file = self._folder.stem, self._folder.file
        return {file(stem(*shard), manifest.checksums.get(shard[0], "")) for shard in manifest.shards.items()}

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._folder.path, "file_format": self._folder.file_format}


class _Manifest(NamedTuple):
    """The fingerprints of a store's shards by name, their files' checksums, and the seconds of the last save.

    ``made_of`` identifies the store that they are made of.
    """

    shards: dict[str, str]
    checksums: dict[str, str]
    seconds: float
    made_of: str = ""

    def to_json(self) -> str:
        """The manifest with a checksum of its own."""
        return json.dumps({"checksum": self._checksum(), **self._asdict()}, indent=1)

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Parse a manifest; those of earlier versions have no checksums, or the shards only. Raises ValueError."""
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("it is no manifest")
        if not isinstance(content.get("shards"), dict):
            content = {"shards": content}
        details = content.get("checksums", {}), content.get("seconds", 0.0), content.get("made_of", "")
        manifest = cls(content["shards"], *details)
        if content.get("checksum", manifest._checksum()) != manifest._checksum():
            raise ValueError("its content is not what was written")
        if not all(isinstance(value, str) for value in (*manifest.shards.values(), *manifest.checksums.values())):
            raise ValueError("it is no manifest")
        return manifest

    def _checksum(self) -> str:
        content = self._asdict()
        if not self.made_of:  # Manifests of earlier versions do not have it.
            del content["made_of"]
        return xxhash.xxh3_64_hexdigest(json.dumps(content).encode())


def _is_intact(folder: ShardFolder, _: None, file: str) -> tuple[str, bool]:
    return file, folder.is_intact(file)


def _build(folder: ShardFolder, tool: Any, item: tuple[Shard, tuple[str, str] | None]) -> tuple[str, tuple[str, str]]:
    """Build and write one shard; return its name, fingerprint and checksum, or those of an earlier good one."""
    shard, earlier = item
    built = shard.build(tool)
    fingerprint = shard.fingerprint
    if content := provisional_digest(built):
        if earlier is not None:
            logger.warning("%s could not be read again: the earlier rows are kept", shard.name)
            return shard.name, earlier
        fingerprint = f"{_RETRY}{fingerprint_of(fingerprint, content)}"
    return shard.name, (fingerprint, folder.write(built, folder.stem(shard.name, fingerprint)))
