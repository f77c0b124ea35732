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
#: Names of files and folders that the ``datasets`` library treats as splits.
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
    """A local folder: data files and an optional card (``README.md``).

    If the card declares no configs, files and folders named like a split (``train.csv``, ``test/a.csv``) are splits of
    one config, and every other file is its own config.
    """

    folder: Path

    @property
    def dataset(self) -> str:  # type: ignore[override]
        return self.folder.name

    def fingerprint(self) -> str:
        digest_of_all = hashlib.sha256()
        for path, digest in self._once(self._hash_files).items():
            digest_of_all.update(f"{path}\x1f{digest}\x1f".encode(errors="surrogateescape"))
        return digest_of_all.hexdigest()

    def content(self) -> str | None:
        digests = sorted(
            digest for path, digest in self._once(self._hash_files).items() if path.suffix.lower() in FORMATS
        )
        if not digests:
            return None
        # The card affects what is read: it declares configs and the names of labels.
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
        """SHA-256 of every file, by its path in the folder. Raises OSError if one cannot be read."""
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
        """Whether the file is in the folder, not behind a link to a place outside."""
        return file.resolve().is_relative_to(self.folder.resolve())

    def _card_text(self) -> str:
        card = self.folder / "README.md"
        exists = card.is_file() and self._is_inside(card)
        return card.read_text(encoding="utf-8-sig", errors="replace") if exists else ""

    def _splits(self) -> dict[str, dict[str, list[str]]]:
        """The glob patterns of each config's splits, as the card declares them, or else by the names of the files."""
        declared = declared_splits(front_matter(self._card_text()))
        return self._splits_by_name() if declared is None else declared

    def _splits_by_name(self) -> dict[str, dict[str, list[str]]]:
        """The splits by file names; parts such as ``train-00000-of-00002`` are one file.

        Configs that would have the same name get the path of their first file as their name.
        """
        patterns: defaultdict[tuple[str, Path], dict[str, list[str]]] = defaultdict(dict)
        for file in self._files():
            if file.suffix.lower() in FORMATS:
                path = file.relative_to(self.folder)
                without_number = path.with_name(_SHARD_NUMBER.sub("", path.stem) + path.suffix)
                config, split, files = _config_and_split(without_number)
                patterns[config, files].setdefault(split, []).append(escape(str(path)))
        names = Counter(config for config, _ in patterns)
        return {
            config if names[config] == 1 else files.as_posix(): {
                split: splits[split] for split in sorted(splits, key=list(_SPLIT_WORDS).index)
            }
            for (config, files), splits in patterns.items()
        }

    def _matching(self, patterns: list[str]) -> list[Path]:
        """The files that match the patterns. Raises RebaseError if none does, or if a pattern leaves the folder."""
        outside = [pattern for pattern in patterns if Path(pattern).is_absolute() or ".." in Path(pattern).parts]
        files = [file for pattern in patterns if pattern not in outside for file in sorted(self.folder.glob(pattern))]
        files = [file for file in files if file.is_file() and self._is_inside(file)]
        if outside or not files:
            raise RebaseError(f"no data files inside the folder match: {outside or patterns}")
        return files


def _config_and_split(file: Path) -> tuple[str, str, Path]:
    """The config and split of a file, by its path, and the pattern that all files of the config have in common."""
    for depth, part in enumerate([*file.parts[:-1], file.stem]):
        for split, name in _SPLIT_NAMES.items():
            if name.fullmatch(part):
                above = Path(*file.parts[:depth])
                config = above.as_posix() if above.parts not in ((), ("data",)) else "default"
                return config, split, above / f"*{file.suffix.lower()}"
    return file.stem, "train", file
