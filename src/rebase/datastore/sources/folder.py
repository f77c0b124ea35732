"""Local folders."""

import errno
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from rebase.datastore.sources.base import Source
from rebase.datastore.sources.errors import check_time
from rebase.datastore.sources.files import digest_of_content, is_inside, list_files, read_start


@dataclass(frozen=True)
class FolderSource(Source):
    """A local folder: data files and an optional card (``README.md``)."""

    folder: Path
    split: str | None = None

    @property
    def dataset(self) -> str:  # type: ignore[override]
        name = self.folder.name  # That of a link, not of where it leads.
        return self.folder.resolve().name if name in ("", "..") else name

    def fingerprint(self) -> str:
        digest_of_all = hashlib.sha256()
        for path, digest in self._once(self._hash_files).items():
            digest_of_all.update(f"{path}\x1f{digest}\x1f".encode(errors="surrogateescape"))
        return digest_of_all.hexdigest()

    def content(self) -> str | None:
        digests = {path.as_posix(): digest for path, digest in self._once(self._hash_files).items()}
        return digest_of_content(digests, self._front())

    def revision_id(self) -> str:
        return self.fingerprint()[:12]

    def address(self) -> str:
        return str(self.folder.resolve())

    def text_of(self, name: str, most: int) -> str:
        file = self.folder / name
        exists = file.is_file() and is_inside(str(file), self.address())
        return read_start(file, most) if exists else ""

    def _hash_files(self) -> dict[Path, str]:
        """SHA-256 of every file, by its path in the folder. Raises OSError if one cannot be read."""
        if not self.folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder))
        digests = {}
        for file in list_files(self.folder):
            check_time()
            if is_inside(str(file), self.address()):
                with file.open("rb") as stream:
                    digests[file.relative_to(self.folder)] = hashlib.file_digest(stream, "sha256").hexdigest()
        return digests
