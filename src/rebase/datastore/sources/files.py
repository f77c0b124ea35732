"""Find the data files of a config, in a local folder or on the hub, as the ``datasets`` library does."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from glob import escape, has_magic
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from rebase.datastore.sources.cards import reader_options
from rebase.datastore.sources.errors import NoDataFilesError, TooLargeError, check_time
from rebase.errors import RebaseError

HUB_PREFIX = "hf://"
#: Folders within folders, and wildcards of a card's pattern: those in one name, and those for any folders.
_MOST_LEVELS, _MOST_STARS, _MOST_DOUBLE_STARS = 50, 3, 2
#: Archives whose files tell the format of all.
_COUNTED_ARCHIVES = 5
#: Names of notes. Of Markdown and TOML, the library only reads files of agents' tasks.
_NOTE = re.compile(
    r"(?:licen[cs]e|copying|notice|readme)\b.*|(?!task\.toml|instruction\.md).*\.(?:md|toml)", re.IGNORECASE
)
#: Suffixes of tables and their archives: a few text files beside them, at most so many for each, describe them.
_TABLES, _FEW = {"arrow", "csv", "json", "jsonl", "ndjson", "parquet", "tsv", "zip"}, 5


@dataclass(frozen=True)
class DataFiles:
    """The data files of one split of a config, all of one format.

    Attributes:
        module: the library's reader of the format, such as ``csv``.
        paths: local paths, or addresses on the hub.
        options: the options of the reader that the card gives.
        token: for the hub.
        split: the split.
        other_splits: the config's other splits.
        other_files: files of other formats, and files that the library assigns to no split.
        has_archived_splits: whether names in ZIP archives tell the splits; then other splits are not read from them.
        unusable: files that are declared but missing, or outside the dataset, with the reason.
        decoding: what is done with invalid bytes of text: ``replace``, or ``strict`` for an error.

    """

    module: str
    paths: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    token: str | None = field(default=None, repr=False)
    split: str = "train"
    other_splits: list[str] = field(default_factory=list)
    other_files: list[str] = field(default_factory=list)
    has_archived_splits: bool = False
    unusable: dict[str, str] = field(default_factory=dict)
    decoding: str = "replace"


def find_files(root: str, declared: dict[str, Any], split: str | None, token: str | None) -> DataFiles:
    """Find the files of a split: ``split``, or ``train``, or the config's first one.

    ``root`` is the dataset's folder or address; ``declared`` is what its card declares about the config.

    Raises:
        NoDataFilesError: There is no file of a format that the library reads.
        RebaseError: There is no such split, or the card names files that may be outside the dataset.

    """
    data_files, folder = declared.get("data_files"), str(declared.get("data_dir") or "")
    _check_inside([folder])
    base = f"{root}/{folder}".rstrip("/")
    everything = [] if data_files else _matching(["**"], base, token)[0]
    splits = _declared_splits(data_files) if data_files else splits_by_name(_without_text(everything), base)
    archived_splits = {} if data_files else _archived_splits(splits, root, token)
    splits = archived_splits or splits
    if split not in (None, *splits):
        raise RebaseError(f"there is no split {split!r}; there are {', '.join(splits) or 'none'}")
    chosen = split or ("train" if "train" in splits else next(iter(splits), "train"))
    patterns = splits.pop(chosen, [])
    matches, missing = _matching(patterns, base, token) if data_files else (patterns, [])
    links = [path for path in matches if not is_inside(path, root)]
    module, paths = data_format([path for path in matches if path not in links], token)
    if not paths:
        if scripts := [path for path in everything if path.endswith(".py")]:
            raise RebaseError(f"dataset scripts are no longer supported, but there is {scripts[0]}")
        raise NoDataFilesError(f"no data files inside the dataset match: {', '.join([*links, *patterns]) or '**'}")
    others = {*everything, *matches}.difference(paths, links, *splits.values())
    return DataFiles(
        module,
        paths,
        options=reader_options(declared),
        token=token,
        split=chosen,
        other_splits=[] if split else list(splits),
        other_files=sorted(filter(is_data_file, (path.removeprefix(f"{base}/") for path in others))),
        has_archived_splits=bool(archived_splits),
        unusable=dict.fromkeys(missing, "there is no such file") | dict.fromkeys(links, "a link out of the dataset"),
    )


def data_format(paths: list[str], token: str | None = None) -> tuple[str, list[str]]:
    """The library's reader of the most frequent format of the files, and the files that it reads."""
    from datasets.load import infer_module_for_data_files_list

    module, _ = infer_module_for_data_files_list(_archived(paths, token) or paths, _download_config(token))
    return (module, files_of_format(module, paths)) if module else ("", [])


def files_of_format(module: str, paths: Iterable[str]) -> list[str]:
    """The files that a reader of the library reads, by their names."""
    from datasets.data_files import DataFilesList
    from datasets.packaged_modules import _MODULE_TO_EXTENSIONS, _MODULE_TO_METADATA_FILE_NAMES

    extensions, names = _MODULE_TO_EXTENSIONS[module], _MODULE_TO_METADATA_FILE_NAMES[module]
    # The library's expressions do not match every folder, nor a name such as A.CSV.
    files = {path: DataFilesList([PurePosixPath(path).name.lower()], []) for path in paths}
    return [path for path in files if files[path].filter(extensions=extensions, file_names=names)]


def _archived(paths: list[str], token: str | None) -> list[str]:
    """The data files in ZIP archives, if all data files are archives: the library would count a license, too."""
    archives = list(filter(_format_suffixes, paths))
    if not all(map(is_archive, archives)):
        return []
    names = chain.from_iterable(extracted_files(path, token) for path in archives[:_COUNTED_ARCHIVES])
    files = map(path_in_archive, names)
    return _without_text([path for path in files if not is_note(path) and not leaves_archive(path)])


def extracted_files(path: str, token: str | None) -> list[str]:
    """The library's names of the files in an archive, ``zip://FILE::ARCHIVE``, or of one file without compression."""
    from datasets.download import StreamingDownloadManager

    manager = StreamingDownloadManager(download_config=_download_config(token))
    return list(manager.iter_files(manager.extract(path)))


def is_archive(path: str) -> bool:
    """Whether a file is a ZIP archive, by its name."""
    return path.lower().endswith(".zip")


def path_in_archive(name: str) -> str:
    """The path of a file in its archive, from the library's name of it."""
    return name.rpartition("::")[0].removeprefix("zip://")


def leaves_archive(path: str) -> bool:
    """Whether the library takes a path in an archive for an archive, which may be a file outside of the dataset."""
    return is_archive(path) or "::" in path


def is_note(path: str) -> bool:
    """Whether a file is a license or a description, by its name."""
    return _NOTE.fullmatch(PurePosixPath(path).name) is not None and not _is_table(path)


def _is_table(path: str) -> bool:
    return not _TABLES.isdisjoint(_format_suffixes(path))


def _without_text(paths: list[str]) -> list[str]:
    """The files without text files, if these are few beside tables. Many are a corpus, which a table describes."""
    tables = {path for path in paths if _is_table(path)}
    texts = {path for path in paths if "txt" in _format_suffixes(path)} - tables
    return [path for path in paths if path not in texts] if len(texts) <= _FEW * len(tables) else paths


def list_files(folder: Path) -> list[Path]:
    """The files in a folder, sorted; without those behind links or in hidden folders.

    Raises OSError if a folder cannot be read, and TooLargeError if too many are nested.
    """

    def fail(error: OSError) -> None:
        raise error

    files: list[Path] = []
    for path, folders, names in os.walk(folder, onerror=fail):
        check_time()
        folders[:] = [name for name in folders if not name.startswith(".")]
        if folders and len(Path(path).relative_to(folder).parts) + 1 == _MOST_LEVELS:
            raise TooLargeError(f"more than {_MOST_LEVELS} folders are nested: {path[:200]}")
        files += [file for name in names if not name.startswith(".") and (file := Path(path, name)).is_file()]
    return sorted(files)


def read_start(file: Path, most: int) -> str:
    """The first characters of a text file, at most so many; invalid bytes become U+FFFD."""
    with file.open(encoding="utf-8-sig", errors="replace") as stream:
        return stream.read(most)


def is_data_file(path: str) -> bool:
    """Whether the library reads files of this name: by its suffixes, unless it is hidden or describes a dataset."""
    from datasets.config import DATASET_STATE_JSON_FILENAME
    from datasets.data_files import FILES_TO_IGNORE

    *folders, name = PurePosixPath(path).parts or ("",)
    if name in (*FILES_TO_IGNORE, DATASET_STATE_JSON_FILENAME) or any(part[:1] == "." for part in (*folders, name)):
        return False
    return bool(_format_suffixes(name))


def _format_suffixes(path: str) -> list[str]:
    """The suffixes by which the library knows a file's format and compression."""
    from datasets.packaged_modules import _ALL_EXTENSIONS

    return [suffix for suffix in PurePosixPath(path).name.lower().split(".")[1:] if f".{suffix}" in _ALL_EXTENSIONS]


def digest_of_content(digests: Mapping[str, str], front: Mapping[str, Any]) -> str:
    """A digest of data files, given by path in the dataset: of their contents, formats and splits; empty without any.

    The card's fields affect what is read: they declare configs, by the names of their files, and the names of labels.
    Without configs, names of files count only by the splits that they tell.
    """
    paths = list(filter(is_data_file, digests))
    splits = {path: split for split, of_split in splits_by_name(paths).items() for path in of_split}
    names = {path: path if "configs" in front else splits.get(path, "") for path in paths}
    parts = sorted([names[path], *_format_suffixes(path), digests[path]] for path in paths)
    declared = [front.get("configs"), front.get("dataset_info")]
    return hashlib.sha256(repr([parts, declared]).encode()).hexdigest() if parts else ""


def is_inside(path: str, folder: str) -> bool:
    """Whether a file is in the folder, not behind a link to a place outside. There are no links on the hub."""
    return path.startswith(HUB_PREFIX) or Path(path).resolve().is_relative_to(folder)


def _declared_splits(data_files: Any) -> dict[str, list[str]]:
    """The patterns of each split's files, as a card declares them. Raises ValueError if it declares them wrongly."""
    from datasets.data_files import sanitize_patterns

    splits = {str(split): list(map(str, patterns)) for split, patterns in sanitize_patterns(data_files).items()}
    _check_inside(chain(*splits.values()))
    return splits


def splits_by_name(paths: list[str], base: str = "") -> dict[str, list[str]]:
    """The files of each split, by the library's patterns for the names of files and folders."""
    from datasets.data_files import _get_data_files_patterns

    names = {path.removeprefix(f"{base}/"): path for path in paths}

    def matching(pattern: str) -> list[str]:
        return [path for name, path in names.items() if _expression(pattern).match(name)]

    patterns = _get_data_files_patterns(matching) if paths else {}
    return {str(split): list(dict.fromkeys(chain(*map(matching, patterns[split])))) for split in patterns}


def _archived_splits(splits: dict[str, list[str]], root: str, token: str | None) -> dict[str, list[str]]:
    """The splits that names in ZIP archives tell, each with all archives; empty unless these are all of one split."""
    paths = list(chain(*splits.values())) if len(splits) == 1 else []
    inner = splits_by_name(_archived([path for path in paths if is_inside(path, root)], token))
    return dict.fromkeys(inner, paths) if len(inner) > 1 else {}


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    from fsspec.utils import glob_translate

    return re.compile(glob_translate(pattern))


def _check_inside(patterns: Iterable[str]) -> None:
    """Raise RebaseError if a path or pattern of a card may be outside the dataset, or takes too long to match."""
    paths = list(patterns)
    outside = [path for path in paths if path[:1] in ("/", "~") or ":" in path or ".." in PurePosixPath(path).parts]
    if outside:
        raise RebaseError(f"the card names files that are not inside the dataset: {', '.join(outside)}")
    for path in paths:
        names = path.split("/")
        if names.count("**") > _MOST_DOUBLE_STARS or any(len(re.findall(r"\*+", name)) > _MOST_STARS for name in names):
            raise RebaseError(f"a pattern of the card has too many wildcards: {path[:200]}")


def _matching(patterns: list[str], base: str, token: str | None) -> tuple[list[str], list[str]]:
    """The files that match the patterns, and the files that are named and do not exist.

    A note matches a pattern only if no other file does.
    """
    from datasets.data_files import resolve_pattern

    paths: list[str] = []
    missing: list[str] = []
    for pattern in patterns:
        check_time()
        try:
            matches = resolve_pattern(pattern, escape(base), download_config=_download_config(token))
            paths += [path for path in matches if not is_note(path)] or matches
        except FileNotFoundError:
            missing += [] if has_magic(pattern) else [pattern]
    return list(dict.fromkeys(paths)), missing


def _download_config(token: str | None) -> Any:
    from datasets import DownloadConfig

    return DownloadConfig(token=token)
