"""Find the datasets that the setting ``sources`` names."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from glob import glob
from itertools import chain
from pathlib import Path
from urllib.parse import parse_qsl

from rebase.datastore.sources.base import Source
from rebase.datastore.sources.files import HUB_PREFIX
from rebase.datastore.sources.folder import FolderSource
from rebase.datastore.sources.hub import HubSource
from rebase.datastore.sources.reading import read_file
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
    be in one text, between commas, unless the whole text matches a path. A hub dataset can be listed once for each of
    its configs. Raises RebaseError if a location matches nothing, or if two datasets have the same name.
    """
    sources: dict[str, Source] = {}
    for location in chain.from_iterable(map(_split, locations)):
        matches = list(_sources_at(location, token))
        if not matches:
            raise RebaseError(f"sources: {_why_nothing(location)}")
        for source in matches:
            sources[source.dataset] = _join(sources.get(source.dataset, source), source)
    return [sources[name] for name in sorted(sources)]


def _join(source: Source, other: Source) -> Source:
    """One source of both, which have the same name. Raises RebaseError unless they are equal but for their configs."""
    if source == other:
        return source
    if isinstance(source, HubSource) and isinstance(other, HubSource) and source.selected and other.selected:
        joined = replace(source, selected=tuple(sorted({*source.selected, *other.selected})))
        if replace(other, selected=joined.selected) == joined:
            return joined
    raise RebaseError(
        f"sources: two datasets are called {source.dataset!r}. Rename one, or list it once. A hub dataset has all its "
        "configs without `config`; to take several, list each, all with the same revision, split and description."
    )


def read_catalog(file: Path, token: str | None = None, group: str | None = None) -> Iterator[HubSource]:
    """The hub datasets of a catalog: ``id`` and optionally ``revision``, ``config``, ``split``, ``description``.

    With ``group``, only those whose column ``group`` has it. Raises RebaseError that names the file, the row (not
    counting blank lines) and the column.
    """
    try:
        rows = read_file(file)
    except Exception as error:  # Every format has its own errors.
        raise RebaseError(f"{file}: the catalog cannot be read: {error}") from error
    if rows and "id" not in rows[0]:
        raise RebaseError(f"{file}: the catalog has no column 'id'; it has {', '.join(rows[0])}.")
    lines = [{name: str(row.get(name) or "").strip() for name in _COLUMNS} for row in rows]
    groups = Counter(group for _, group in {(line["id"], line["group"]) for line in lines} if group)
    if group is not None and group not in groups:
        names = (
            ", ".join(f"{name} ({count})" for name, count in sorted(groups.items()))
            or "none (a column 'group' names them)"
        )
        raise RebaseError(f"{file}: the catalog has no group {group!r}. Its groups, with their datasets: {names}.")
    seen: dict[str, dict[str, int]] = {}
    for number, line in enumerate(lines, start=2 if file.suffix.lower() == ".csv" else 1):
        where, dataset = f"{file}, row {number}, column 'id'", line["id"]
        if not dataset:
            raise RebaseError(f"{where}: it is empty. Write the hub id of the dataset, owner/name.")
        _check_id(dataset, where)
        config, rows_of_configs = line["config"], seen.setdefault(dataset, {})
        if rows_of_configs and (not config or {config, ""} & rows_of_configs.keys()):
            earlier = rows_of_configs.get(config) or next(iter(rows_of_configs.values()))
            raise RebaseError(
                f"{where}: {dataset!r} is in row {earlier} already. List each dataset once, or each config of it."
            )
        rows_of_configs[config] = number
        if group in (None, line["group"]):
            selected = (config,) if config else ()
            yield HubSource(
                dataset, line["revision"] or None, token, selected, line["split"] or None, line["description"]
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


def _why_nothing(location: str) -> str:
    if catalog := _CATALOG.fullmatch(location):
        file = catalog["file"]
        return f"the catalog {file!r} is empty." if glob(file) else f"there is no file {file!r}."
    return (
        f"no folder matches {location!r}. Hub datasets are written hf://OWNER/NAME, and a list of them is a .csv or "
        ".parquet file."
    )


def _hub_source(location: str, token: str | None) -> HubSource:
    address, _, query = location.removeprefix(HUB_PREFIX).partition("?")
    dataset, _, revision = address.partition("@")
    _check_id(dataset, f"sources: {location!r}")
    pairs = parse_qsl(query)
    options = dict(pairs)
    if unknown := sorted(options.keys() - _HUB_OPTIONS) or (["the end"] if query and not options else []):
        raise RebaseError(f"sources: {location!r}: {unknown[0]} is not understood. Write ?config=NAME&split=NAME.")
    if len(options) < len(pairs):
        raise RebaseError(
            f"sources: {location!r} gives one name twice. To take two configs, list the dataset once for each of them."
        )
    selected = (options["config"],) if "config" in options else ()
    return HubSource(dataset, revision or None, token, selected, options.get("split"))


def _check_id(dataset: str, where: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(dataset)
    except HFValidationError as error:
        raise RebaseError(f"{where}: {dataset!r} is not a hub id (owner/name). {error}") from None
