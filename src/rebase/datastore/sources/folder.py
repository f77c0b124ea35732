"""Local folders."""

import errno
import hashlib
import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from rebase.datastore.sources.base import Reading, Source, first_split
from rebase.datastore.sources.cards import declared_features, declared_splits, front_matter, parse_card
from rebase.datastore.sources.reading import FORMATS, sample_files
from rebase.errors import RebaseError
from rebase.records import DatasetCard

_SHARD_NUMBER = re.compile(r"-\d{5}-of-\d{5}$")
#: Names of files and folders that the ``datasets`` library takes for a split.
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_NAMES = {
    split: re.compile(rf"({'|'.join(words)})[-._ 0-9]*", re.IGNORECASE) for split, words in _SPLIT_WORDS.items()
}


@dataclass(frozen=True)
class FolderSource(Source):
    """A local folder: an optional card (``README.md``) and data files.

    Where the card declares no configs, files and folders that are called like a split (``train.csv``,
    ``test/a.csv``) are splits of one config, and every other file is a config of its own.
    """

    folder: Path

    @property
    def dataset(self) -> str:  # type: ignore[override]
        return self.folder.name

    def fingerprint(self) -> str:
        whole = hashlib.sha256()
        for path, digest in self._once(self._hash_files).items():
            whole.update(f"{path}\x1f{digest}\x1f".encode(errors="surrogateescape"))
        return whole.hexdigest()

    def content(self) -> str | None:
        digests = sorted(
            digest for path, digest in self._once(self._hash_files).items() if path.suffix.lower() in FORMATS
        )
        if not digests:
            return None
        # What the card says of the files is part of what is read: their configs, the names of their labels.
        front = front_matter(self._card_text())
        declared = repr([front.get("configs"), front.get("dataset_info")])
        return hashlib.sha256("\x1f".join([*digests, declared]).encode(errors="surrogatepass")).hexdigest()

    def card(self) -> DatasetCard:
        return parse_card(self.dataset, self._card_text(), revision=self.fingerprint()[:12])

    def configs(self) -> list[str]:
        return sorted(self._splits())

    def read(self, config: str, max_rows: int) -> Reading:
        splits = self._splits()[config]
        split, others = first_split(list(splits) or ["train"])
        files = self._matching(splits.get(split, []))
        features = declared_features(front_matter(self._card_text()), config)
        return Reading(split, sample_files(files, features, max_rows), others)

    def _hash_files(self) -> dict[Path, str]:
        """SHA-256 of every file of the folder, by its path inside. Raises OSError where one cannot be read."""
        if not self.folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder))
        digests = {}
        for file in self._files():
            if self._is_inside(file):
                with file.open("rb") as stream:
                    digests[file.relative_to(self.folder)] = hashlib.file_digest(stream, "sha256").hexdigest()
        return digests

    def _files(self) -> list[Path]:
        return sorted(file for file in self.folder.rglob("*") if file.is_file() and not file.name.startswith("."))

    def _is_inside(self, file: Path) -> bool:
        """Whether the file lies in the folder, not behind a link that leads out of it."""
        return file.resolve().is_relative_to(self.folder.resolve())

    def _card_text(self) -> str:
        card = self.folder / "README.md"
        is_there = card.is_file() and self._is_inside(card)
        return card.read_text(encoding="utf-8-sig", errors="replace") if is_there else ""

    def _splits(self) -> dict[str, dict[str, list[str]]]:
        """The configs, their splits, and the glob patterns of these: what the card declares, else by the names."""
        declared = declared_splits(front_matter(self._card_text()))
        return self._splits_by_name() if declared is None else declared

    def _splits_by_name(self) -> dict[str, dict[str, list[str]]]:
        """Parts as in ``train-00000-of-00002`` are one.

        Configs that would share a name are called by the path of their first file, so that none hides another.
        """
        found: defaultdict[tuple[str, Path], dict[str, list[str]]] = defaultdict(dict)
        for file in self._files():
            if file.suffix.lower() in FORMATS:
                path = file.relative_to(self.folder)
                whole = path.with_name(_SHARD_NUMBER.sub("", path.stem) + path.suffix)
                config, split, files = _place(whole)
                found[config, files].setdefault(split, []).append(escape(str(path)))
        names = Counter(config for config, _ in found)
        return {
            config if names[config] == 1 else files.as_posix(): {
                split: splits[split] for split in sorted(splits, key=list(_SPLIT_WORDS).index)
            }
            for (config, files), splits in found.items()
        }

    def _matching(self, patterns: list[str]) -> list[Path]:
        """The files that the patterns match; never outside the folder."""
        outside = [pattern for pattern in patterns if Path(pattern).is_absolute() or ".." in Path(pattern).parts]
        files = [file for pattern in patterns if pattern not in outside for file in sorted(self.folder.glob(pattern))]
        files = [file for file in files if file.is_file() and self._is_inside(file)]
        if outside or not files:
            raise RebaseError(f"no data files inside the folder match: {outside or patterns}")
        return files


def _place(file: Path) -> tuple[str, str, Path]:
    """The config and the split that a file belongs to by its path, and what all files of that config share."""
    for depth, part in enumerate([*file.parts[:-1], file.stem]):
        for split, name in _SPLIT_NAMES.items():
            if name.fullmatch(part):
                above = Path(*file.parts[:depth])
                config = above.as_posix() if above.parts not in ((), ("data",)) else "default"
                return config, split, above / f"*{file.suffix.lower()}"
    return file.stem, "train", file
