"""Where raw rows come from: local folders and the hub, both read through the ``datasets`` library."""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from glob import escape, glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rebase.errors import RebaseError
from rebase.records import DatasetCard

if TYPE_CHECKING:
    from datasets import Features, IterableDataset

_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv"}
_HUB_PREFIX = "hf://"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD_NUMBER = re.compile(r"-\d{5}-of-\d{5}$")
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
_PLAIN_FIELD = re.compile(r"^(\w+):[ \t]+(\S.*?)[ \t]*$", re.MULTILINE)
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
        return self._digest

    def card(self) -> DatasetCard:
        return parse_card(self.dataset, self._card_text(), revision=self._digest[:12])

    def configs(self) -> list[str]:
        return sorted(self._patterns())

    def split(self, config: str) -> str:
        return "train"

    def batches(self, config: str, split: str) -> Iterator[RawBatch]:
        files = self._matching(self._patterns()[config])
        return read_files(files, _features(_front_matter(self._card_text()), config))

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for file in self._files():
            digest.update(f"{file.relative_to(self.folder)}\x1f{file.stat().st_size}\x1f".encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def _files(self) -> list[Path]:
        return sorted(file for file in self.folder.rglob("*") if file.is_file() and not file.name.startswith("."))

    def _card_text(self) -> str:
        card = self.folder / "README.md"
        return card.read_text(encoding="utf-8-sig", errors="replace") if card.exists() else ""

    def _patterns(self) -> dict[str, list[str]]:
        """The configs and the glob patterns of their files: what the card declares, else one config a file."""
        configs = _as_list(_front_matter(self._card_text()).get("configs"))
        entries = [entry for entry in configs if isinstance(entry, dict)]
        if not any(entry.get("data_files") for entry in entries):
            return self._one_config_a_file()
        return {str(entry.get("config_name", "default")): _train_patterns(entry.get("data_files")) for entry in entries}

    def _one_config_a_file(self) -> dict[str, list[str]]:
        """A config for each data file, by its stem; parts as in ``train-00000-of-00002`` are one.

        Files that would share a name are called by their whole path, so that none hides another.
        """
        parts: defaultdict[tuple[str, Path], list[str]] = defaultdict(list)
        for file in self._files():
            if file.suffix.lower() in _BUILDERS:
                path = file.relative_to(self.folder)
                stem = _SHARD_NUMBER.sub("", path.stem)
                parts[stem, path.with_name(stem + path.suffix)].append(escape(str(path)))
        stems = [stem for stem, _ in parts]
        return {
            stem if stems.count(stem) == 1 else path.as_posix(): patterns for (stem, path), patterns in parts.items()
        }

    def _matching(self, patterns: list[str]) -> list[Path]:
        """The files that the patterns match; never outside the folder."""
        root = self.folder.resolve()
        outside = [pattern for pattern in patterns if Path(pattern).is_absolute() or ".." in Path(pattern).parts]
        files = [file for pattern in patterns if pattern not in outside for file in sorted(self.folder.glob(pattern))]
        files = [file for file in files if file.is_file() and file.resolve().is_relative_to(root)]
        if outside or not files:
            raise RebaseError(f"no data files inside the folder match what the card declares: {outside or patterns}")
        return files


@dataclass(frozen=True)
class HubSource(Source):
    """A dataset on the hub, streamed at a revision that is pinned to a commit. No dataset scripts are run."""

    dataset: str
    revision: str | None
    token: str | None = field(repr=False)

    def fingerprint(self) -> str:
        return self._commit

    def card(self) -> DatasetCard:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            path = hf_hub_download(
                self.dataset, "README.md", repo_type="dataset", revision=self._commit, token=self.token
            )
        except LocalEntryNotFoundError:  # Not in the cache, and the hub cannot be reached.
            raise
        except EntryNotFoundError:
            return parse_card(self.dataset, "", revision=self._commit)
        text = Path(path).read_text(encoding="utf-8-sig", errors="replace")
        return parse_card(self.dataset, text, revision=self._commit)

    def configs(self) -> list[str]:
        from datasets import get_dataset_config_names

        return sorted(get_dataset_config_names(self._path, revision=self._commit, token=self.token))

    def split(self, config: str) -> str:
        from datasets import get_dataset_split_names

        splits = get_dataset_split_names(self._path, config, revision=self._commit, token=self.token)
        return "train" if "train" in splits else splits[0]

    def batches(self, config: str, split: str) -> Iterator[RawBatch]:
        from datasets import load_dataset

        stream = load_dataset(self._path, config, split=split, revision=self._commit, streaming=True, token=self.token)
        return _batches(stream)

    @property
    def _path(self) -> str:
        """The dataset's address, so that a local folder of the same name is never taken for it."""
        return f"{_HUB_PREFIX}datasets/{self.dataset}"

    @cached_property
    def _commit(self) -> str:
        """The commit that the revision names, asked for once: a branch may move while it is read."""
        from huggingface_hub import HfApi

        if self.revision and _COMMIT.fullmatch(self.revision):
            return self.revision
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
            if sources.setdefault(source.dataset, source) != source:
                raise RebaseError(f"sources: two datasets are called {source.dataset!r}; rename one of the folders.")
    return [sources[name] for name in sorted(sources)]


def read_files(files: list[Path], features: "Features | None" = None) -> Iterator[RawBatch]:
    """Stream data files of one format (by their ending). Raises RebaseError on an ending that is not known."""
    from datasets import load_dataset

    files = [file for file in files if file.stat().st_size]
    if not files:
        raise RebaseError("the data file is empty")
    suffix = files[0].suffix.lower()
    if suffix not in _BUILDERS:
        raise RebaseError(f"{files[0]}: cannot read {suffix!r}; use one of {', '.join(_BUILDERS)}")
    options = {"sep": "\t"} if suffix == ".tsv" else {}
    names = [escape(str(file)) for file in files]  # The library takes them for patterns.
    stream = load_dataset(_BUILDERS[suffix], data_files=names, split="train", streaming=True, **options)
    return _batches(stream, features)


def read_rows(batches: Iterable[RawBatch]) -> Iterator[dict[str, Any]]:
    """The rows of the batches as dictionaries."""
    for batch in batches:
        yield from rows_of(batch.table)


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table as dictionaries; columns of mixed types, which the library keeps as JSON, are decoded."""
    types = {field.name: field.type for field in table.schema if "arrow.json" in str(field.type)}
    rows: list[dict[str, Any]] = table.to_pylist()
    return [row | {name: _decode(row[name], kind) for name, kind in types.items()} for row in rows]


def why_unread(error: Exception) -> str:
    """The kind of an error while a dataset was read: gated, missing, script, unreachable or malformed.

    What is gated, missing or unreachable today may be had tomorrow.
    """
    from datasets.exceptions import DatasetNotFoundError
    from httpx2 import HTTPError
    from huggingface_hub import errors as hub

    causes = _causes(error)
    if "scripts are no longer supported" in str(error):
        return "script"
    kinds: dict[str, tuple[type[Exception], ...]] = {
        "gated": (hub.GatedRepoError,),
        "missing": (hub.RepositoryNotFoundError, hub.RevisionNotFoundError, DatasetNotFoundError),
        "unreachable": (HTTPError, hub.LocalEntryNotFoundError, ConnectionError, TimeoutError),
    }
    for kind, types in kinds.items():
        if any(isinstance(cause, types) for cause in causes):
            return kind
    return "malformed"


def _causes(error: BaseException | None) -> list[BaseException]:
    """The error and what it came from, outermost first."""
    return [error, *_causes(error.__cause__ or error.__context__)] if error else []


def _decode(value: Any, kind: pa.DataType) -> Any:
    """A value of a column that holds JSON somewhere, with the JSON decoded."""
    if value is None:
        return None
    if isinstance(kind, pa.JsonType):
        return json.loads(value)
    if pa.types.is_struct(kind):
        return {field.name: _decode(value[field.name], field.type) for field in kind.fields}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [_decode(item, kind.value_type) for item in value]
    return value


def _train_patterns(declared: Any) -> list[str]:
    """The patterns of a config's train split, or of its first one, as a card declares them."""
    splits = [item for item in _as_list(declared) if isinstance(item, dict)]
    if not splits:
        return [str(path) for path in _as_list(declared) if path]
    wanted = [item for item in splits if item.get("split", "train") == "train"] or splits[:1]
    return [str(path) for item in wanted for path in _as_list(item.get("path")) if path]


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
    except (yaml.YAMLError, ValueError):  # ValueError: a date that there is not.
        # One broken line must not hide the licence.
        return {name: value.strip("\"'") for name, value in _PLAIN_FIELD.findall(_split_card(text)[0])}
    return front if isinstance(front, dict) else {}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _features(front: dict[str, Any], config: str) -> "Features | None":
    """The class labels that a card declares, as ``datasets`` features."""
    from datasets import Features

    info = front.get("dataset_info") or []
    for entry in info if isinstance(info, list) else [info]:
        if isinstance(entry, dict) and entry.get("config_name", config) == config and entry.get("features"):
            return Features._from_yaml_list(entry["features"])
    return None


def _batches(stream: "IterableDataset", features: "Features | None" = None) -> Iterator[RawBatch]:
    label_names = _label_names(stream.features or {}) | _label_names(features or {})
    for table in stream.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        yield RawBatch(table, label_names)


def _label_names(feature: Any, column: str = "") -> dict[str, list[str]]:
    """Flat column -> names, for every class-label column, nested and listed ones too."""
    from datasets import ClassLabel

    if isinstance(feature, dict):
        prefix = f"{column}." if column else ""
        nested = (_label_names(inner, f"{prefix}{name}") for name, inner in feature.items())
        return {name: names for part in nested for name, names in part.items()}
    if hasattr(feature, "feature"):
        return _label_names(feature.feature, column)
    return {column: list(feature.names)} if isinstance(feature, ClassLabel) and feature.names else {}
