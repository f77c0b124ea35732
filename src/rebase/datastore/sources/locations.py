"""Find the datasets that the setting ``sources`` names."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from glob import glob
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from rebase.datastore.sources.base import Source
from rebase.datastore.sources.files import HUB_PREFIX
from rebase.datastore.sources.folder import FolderSource
from rebase.datastore.sources.hub import HubSource
from rebase.errors import RebaseError

#: A catalog, and the group of its datasets that is taken: ``hub.csv#nli``.
_CATALOG = re.compile(r"(?P<file>.+\.(?:csv|parquet))(?:#(?P<group>.*))?", re.IGNORECASE)
_HUB_OPTIONS = {"config", "split"}
#: The columns of a catalog; only ``id`` is required, other columns are ignored.
_COLUMNS = ("id", "revision", "config", "split", "description", "group")


def find_sources(locations: Iterable[str], token: str | None = None) -> list[Source]:
    """Find the sources at the locations, sorted by name.

    A location is a glob of local folders; ``hf://OWNER/NAME@REVISION?config=NAME&split=NAME``, where only the id
    is required; or a catalog, a CSV or Parquet file with hub ids, of which ``FILE#GROUP`` takes one group. Several can
    be in one text, between commas, unless the whole text matches a path. Raises RebaseError if a location matches
    nothing, or if two datasets have the same name.
    """
    sources: dict[str, Source] = {}
    for location in chain.from_iterable(map(_split, locations)):
        matches = list(_sources_at(location, token))
        if not matches:
            raise RebaseError(
                f"sources: no folder matches {location!r}. Hub datasets are written hf://OWNER/NAME, and a list of "
                "them is a .csv or .parquet file."
            )
        for source in matches:
            if sources.setdefault(source.dataset, source) != source:
                raise RebaseError(f"sources: two datasets are called {source.dataset!r}. Rename one, or list it once.")
    return [sources[name] for name in sorted(sources)]


def read_catalog(file: Path, token: str | None = None, group: str | None = None) -> Iterator[HubSource]:
    """The hub datasets of a catalog: ``id`` and optionally ``revision``, ``config``, ``split``, ``description``.

    With ``group``, only those whose column ``group`` has it. Raises RebaseError that names the file, the row (the line
    of a CSV file) and the column.
    """
    seen: dict[str, int] = {}
    lines = _read_table(file)
    groups = Counter(line["group"] for line in lines if line["group"])
    if group is not None and group not in groups:
        names = (
            ", ".join(f"{name} ({count})" for name, count in sorted(groups.items()))
            or "none (a column 'group' names them)"
        )
        raise RebaseError(f"{file}: the catalog has no group {group!r}. Its groups, with their datasets: {names}.")
    for number, line in enumerate(lines, start=2 if file.suffix.lower() == ".csv" else 1):
        where = f"{file}, row {number}, column 'id'"
        dataset = line.pop("id")
        if not dataset:
            raise RebaseError(f"{where}: it is empty. Write the hub id of the dataset, owner/name.")
        _check_id(dataset, where)
        if dataset in seen:
            raise RebaseError(f"{where}: {dataset!r} is in row {seen[dataset]} already. List each dataset once.")
        seen[dataset] = number
        if group not in (None, line["group"]):
            continue
        yield HubSource(
            dataset,
            line["revision"] or None,
            token,
            line["config"] or None,
            line["split"] or None,
            line["description"],
        )


def _split(locations: str) -> list[str]:
    return [locations] if glob(locations) else [part.strip() for part in locations.split(",")]


def _sources_at(location: str, token: str | None) -> Iterator[Source]:
    if location.startswith(HUB_PREFIX):
        yield _hub_source(location, token)
        return
    catalog = _CATALOG.fullmatch(location)
    for path in map(Path, sorted(glob(catalog["file"] if catalog else location))):
        if path.is_dir():
            yield FolderSource(path)
        elif catalog:
            yield from read_catalog(path, token, catalog["group"])


def _hub_source(location: str, token: str | None) -> HubSource:
    address, _, query = location.removeprefix(HUB_PREFIX).partition("?")
    dataset, _, revision = address.partition("@")
    _check_id(dataset, f"sources: {location!r}")
    options = dict(parse_qsl(query))
    if unknown := sorted(options.keys() - _HUB_OPTIONS) or (["the end"] if query and not options else []):
        raise RebaseError(f"sources: {location!r}: {unknown[0]} is not understood. Write ?config=NAME&split=NAME.")
    return HubSource(dataset, revision or None, token, options.get("config"), options.get("split"))


def _check_id(dataset: str, where: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(dataset)
    except HFValidationError as error:
        raise RebaseError(f"{where}: {dataset!r} is not a hub id (owner/name). {error}") from None


def _read_table(file: Path) -> list[dict[str, str]]:
    """The rows of a catalog, with all columns, as text without outer spaces."""
    import pandas as pd

    try:
        if file.suffix.lower() == ".csv":
            table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False)
        else:
            table = pd.read_parquet(file).reset_index(drop=True)
    except Exception as error:  # Every format has its own errors.
        raise RebaseError(f"{file}: the catalog cannot be read: {error}") from error
    if not isinstance(table.index, pd.RangeIndex):  # The CSV reader uses fields without a header as an index.
        raise RebaseError(f"{file}: the catalog cannot be read: its rows have more fields than its header.")
    if "id" not in table:
        raise RebaseError(f"{file}: the catalog has no column 'id'; it has {', '.join(map(str, table.columns))}.")
    return [{name: _text(line.get(name)) for name in _COLUMNS} for line in table.to_dict("records")]


def _text(value: Any) -> str:
    import pandas as pd

    return "" if pd.isna(value) else str(value).strip()
