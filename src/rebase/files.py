"""Files that are written completely or not at all, and checksums by which damage is noticed."""

import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import xxhash

#: Of a folder: the checksums of its files by relative path, as JSON.
CHECKSUMS = ".checksums.json"
#: Copies of remote files.
DOWNLOADS = Path.home() / ".cache" / "rebase"
#: A temporary name has its machine and process, so that those of ended processes can be removed.
_TEMPORARY = re.compile(r"\..+?(?:-(?P<host>[0-9a-f]{8})-(?P<process>\d+))?-[a-z0-9_]{8}")
_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
#: Seconds after which temporary files of other machines, and of earlier versions, are removed.
_OLD = 7 * 24 * 3600


@contextmanager
def temporary_file(folder: Path, name: str) -> Iterator[Path]:
    """Yield the path of an empty file in ``folder``, readable by all; it is removed unless the block renames it."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, path = tempfile.mkstemp(prefix=_prefix(name), dir=folder)
    os.close(handle)
    temporary = Path(path)
    temporary.chmod(0o644)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path, which becomes ``target`` if the block succeeds."""
    with temporary_file(target.parent, target.name) as temporary:
        yield temporary
        temporary.replace(target)


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder, which replaces ``target`` if the block succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_prefix(target.name), dir=target.parent) as folder:
        temporary = Path(folder, "new")
        temporary.mkdir()
        yield temporary
        if target.exists():
            # A folder cannot be renamed over a non-empty one, so the old folder is renamed first.
            target.replace(Path(folder, "old"))
        temporary.replace(target)


def remove_temporaries(root: Path) -> list[Path]:
    """Remove the temporary files and folders that killed processes left under ``root``; return their paths."""
    leftovers = []
    for parent, folders, files in os.walk(root):
        leftovers += [path for name in (*folders, *files) if _is_leftover(path := Path(parent, name))]
        folders[:] = [name for name in folders if not _TEMPORARY.fullmatch(name)]
    for path in leftovers:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return leftovers


def checksum(path: Path) -> str:
    """The XXH3 of a file as 16 hexadecimal digits. A process reads a file once, unless it changes.

    XXH3 reads as fast as memory; an accident, not an attack, is what it finds.
    """
    status = path.stat()
    return _checksum(path, status.st_ino, status.st_size, status.st_mtime_ns)


def checksums(folder: Path) -> dict[str, str]:
    """The checksums of a folder's files by relative path, without Markdown, which people may edit, and hidden files."""
    names = (file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file() and file.suffix != ".md")
    visible = (name for name in names if not any(part.startswith(".") for part in name.parts))
    return {name.as_posix(): checksum(folder / name) for name in visible}


def content_checksum(path: Path) -> str:
    """The checksum of a file, or of the ``checksums`` of a folder."""
    return checksum(path) if path.is_file() else xxhash.xxh3_64_hexdigest(json.dumps(checksums(path)).encode())


def write_checksums(folder: Path) -> None:
    """Write the ``checksums`` of a folder into it."""
    (folder / CHECKSUMS).write_text(json.dumps(checksums(folder), indent=1))


def damaged_files(folder: Path) -> list[Path]:
    """The files of a folder that are not as ``write_checksums`` found them; empty if it was not called."""
    file = folder / CHECKSUMS
    try:
        written: dict[str, str] = json.loads(file.read_bytes())
        files = ((folder / name, digest) for name, digest in written.items())
        return [file for file, digest in files if not file.is_file() or checksum(file) != digest]
    except FileNotFoundError:
        return []
    except (ValueError, AttributeError):
        return [file]


@cache
def _checksum(path: Path, *_identity: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_64).hexdigest()


def _prefix(name: str) -> str:
    return f".{name}-{_HOST}-{os.getpid()}-"


def _is_leftover(path: Path) -> bool:
    match = _TEMPORARY.fullmatch(path.name)
    if match and match["host"] == _HOST:
        return not psutil.pid_exists(int(match["process"]))
    return bool(match) and time.time() - path.lstat().st_mtime > _OLD
