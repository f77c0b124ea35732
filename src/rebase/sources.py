"""Where raw rows come from: local folders and the hub, both read through the ``datasets`` library."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rebase.errors import RebaseError
from rebase.records import DatasetCard

if TYPE_CHECKING:
    from datasets import Features, IterableDataset

_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv"}
_HUB_PREFIX = "hf://"
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
_BATCH_ROWS = 1000


@dataclass(frozen=True)
class RawBatch:
    """Consecutive rows of a config as they were read, with the names of their class-label columns."""

    table: pa.Table
    label_names: dict[str, list[str]]


class Source(ABC):
    """One raw dataset."""

    dataset: str

    @abstractmethod
    def fingerprint(self) -> str:
        """What the content is known by: changes when the content does. Raises OSError where it cannot be had."""

    @abstractmethod
    def card(self) -> DatasetCard:
        """The dataset's description and licence."""

    @abstractmethod
    def configs(self) -> list[str]:
        """The names of the dataset's configs."""

    @abstractmethod
    def split(self, config: str) -> str:
        """The split that is read of a config: ``train`` where there is one."""

    @abstractmethod
    def batches(self, config: str, split: str) -> Iterator[RawBatch]:
        """Stream the rows of a config's split, undecoded. Raises whatever the library raises on malformed data."""


@dataclass(frozen=True)
class FolderSource(Source):
    """A local folder: an optional card (``README.md``) and data files, one config a file unless the card says more."""

    folder: Path

    @property
    def dataset(self) -> str:  # type: ignore[override]
        return self.folder.name

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for file in self._files():
            digest.update(f"{file.relative_to(self.folder)}\x1f{file.stat().st_size}\x1f".encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def card(self) -> DatasetCard:
        return parse_card(self.dataset, self._card_text(), revision=self.fingerprint()[:12])

    def configs(self) -> list[str]:
        return sorted(self._data_files())

    def split(self, config: str) -> str:
        return "train"

    def batches(self, config: str, split: str) -> Iterator[RawBatch]:
        files = self._data_files()[config]
        return read_files(files, _features(_front_matter(self._card_text()), config))

    def _files(self) -> list[Path]:
        return sorted(file for file in self.folder.rglob("*") if file.is_file() and not file.name.startswith("."))

    def _card_text(self) -> str:
        card = self.folder / "README.md"
        return card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""

    def _data_files(self) -> dict[str, list[Path]]:
        declared = _front_matter(self._card_text()).get("configs") or []
        if declared:
            return {entry["config_name"]: self._declared_files(entry) for entry in declared}
        return {file.stem: [file] for file in self._files() if file.suffix in _BUILDERS}

    def _declared_files(self, entry: dict[str, Any]) -> list[Path]:
        """The files of a config, of its train split if it has several; never outside the folder."""
        declared = entry["data_files"]
        items = declared if isinstance(declared, list) else [declared]
        splits = [item for item in items if isinstance(item, dict)]
        if splits:
            wanted = [item for item in splits if item.get("split", "train") == "train"] or splits[:1]
            items = [path for item in wanted for path in _as_list(item["path"])]
        files = [file for path in items for file in sorted(self.folder.glob(path))]
        return [file for file in files if file.resolve().is_relative_to(self.folder.resolve())]


@dataclass(frozen=True)
class HubSource(Source):
    """A dataset on the hub, streamed at a revision that is pinned to a commit. No dataset scripts are run."""

    dataset: str
    revision: str | None
    token: str | None

    def fingerprint(self) -> str:
        return self._commit()

    def card(self) -> DatasetCard:
        from huggingface_hub import DatasetCard as HubCard
        from huggingface_hub.errors import EntryNotFoundError

        try:
            text = HubCard.load(self.dataset, token=self.token, ignore_metadata_errors=True).content
        except EntryNotFoundError:
            text = ""
        return parse_card(self.dataset, text, revision=self._commit())

    def configs(self) -> list[str]:
        from datasets import get_dataset_config_names

        names: list[str] = get_dataset_config_names(self.dataset, revision=self._commit(), token=self.token)
        return names

    def split(self, config: str) -> str:
        from datasets import get_dataset_split_names

        splits = get_dataset_split_names(self.dataset, config, revision=self._commit(), token=self.token)
        return "train" if "train" in splits else splits[0]

    def batches(self, config: str, split: str) -> Iterator[RawBatch]:
        from datasets import load_dataset

        stream = load_dataset(
            self.dataset,
            config,
            split=split,
            revision=self._commit(),
            streaming=True,
            token=self.token,
        )
        return _batches(stream)

    def _commit(self) -> str:
        from huggingface_hub import HfApi

        return str(HfApi(token=self.token).dataset_info(self.dataset, revision=self.revision).sha)


def find_sources(locations: Iterable[str], token: str | None = None) -> list[Source]:
    """The sources that the locations name: globs of local folders, or hub ids as ``hf://OWNER/NAME@REVISION``.

    Raises RebaseError where a location names nothing.
    """
    sources: dict[str, Source] = {}
    for location in locations:
        if location.startswith(_HUB_PREFIX):
            dataset, _, revision = location.removeprefix(_HUB_PREFIX).partition("@")
            found: list[Source] = [HubSource(dataset, revision or None, token)]
        else:
            found = [FolderSource(Path(path)) for path in sorted(glob(location)) if Path(path).is_dir()]
        if not found:
            raise RebaseError(f"sources: no folder matches {location!r}. Hub datasets are written hf://OWNER/NAME.")
        for source in found:
            if source.dataset in sources:
                raise RebaseError(f"sources: two datasets are called {source.dataset!r}; rename one of the folders.")
            sources[source.dataset] = source
    return [sources[name] for name in sorted(sources)]


def read_files(files: list[Path], features: "Features | None" = None) -> Iterator[RawBatch]:
    """Stream data files of one format (by their ending). Raises RebaseError on an ending that is not known."""
    from datasets import load_dataset

    if not files:
        raise RebaseError("no data files match what the card declares")
    suffix = files[0].suffix
    if suffix not in _BUILDERS:
        raise RebaseError(f"{files[0]}: cannot read {suffix!r}; use one of {', '.join(_BUILDERS)}")
    options = {"sep": "\t"} if suffix == ".tsv" else {}
    names = [str(file) for file in files]
    stream = load_dataset(_BUILDERS[suffix], data_files=names, split="train", streaming=True, **options)
    return _batches(stream, features)


def read_rows(batches: Iterable[RawBatch]) -> Iterator[dict[str, Any]]:
    """The rows of the batches as dictionaries."""
    for batch in batches:
        yield from batch.table.to_pylist()


def parse_card(dataset: str, text: str, revision: str) -> DatasetCard:
    """Read a dataset card: YAML front matter, then the description. A card without either is taken as it is."""
    front = _front_matter(text)
    body = _split_card(text)[1].strip()
    return DatasetCard(
        dataset=dataset,
        description=body or str(front.get("pretty_name") or dataset),
        licence="; ".join(map(str, _as_list(front.get("license") or "unknown"))),
        languages=tuple(map(str, _as_list(front.get("language") or []))),
        revision=revision,
    )


def _split_card(text: str) -> tuple[str, str]:
    """Front matter and body."""
    match = _FRONT_MATTER.match(text)
    return (match[1], text[match.end() :]) if match else ("", text)


def _front_matter(text: str) -> dict[str, Any]:
    import yaml

    try:
        front = yaml.safe_load(_split_card(text)[0])
    except yaml.YAMLError:
        return {}
    return front if isinstance(front, dict) else {}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _features(front: dict[str, Any], config: str) -> "Features | None":
    """The class labels that a card declares, as ``datasets`` features."""
    from datasets import Features

    info = front.get("dataset_info") or []
    for entry in info if isinstance(info, list) else [info]:
        if entry.get("config_name", config) == config and entry.get("features"):
            return Features._from_yaml_list(entry["features"])
    return None


def _batches(stream: "IterableDataset", features: "Features | None" = None) -> Iterator[RawBatch]:
    label_names = _label_names(stream.features or {}) | _label_names(features or {})
    for table in stream.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        yield RawBatch(table, label_names)


def _label_names(features: Any, prefix: str = "") -> dict[str, list[str]]:
    """Flat column -> names, for every class-label column, nested and listed ones too."""
    names: dict[str, list[str]] = {}
    for column, feature in features.items():
        inner = getattr(feature, "feature", feature)
        if isinstance(inner, dict):
            names |= _label_names(inner, f"{prefix}{column}.")
        elif hasattr(inner, "names"):
            names[f"{prefix}{column}"] = list(inner.names)
    return names

