"""Parse dataset cards: YAML front matter, followed by the description."""

import re
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain, islice
from typing import Any

import yaml

from rebase.records import DatasetCard

_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
_PLAIN_FIELD = re.compile(r"^(\w+):[ \t]+(.*)$", re.MULTILINE)
#: Characters of a card that are read; values, and levels, of its front matter when all aliases are replaced.
MOST_CHARACTERS, _MOST_VALUES, _MOST_LEVELS = 2**20, 100_000, 50
#: The most licenses that are kept, and the most characters of a name beside the license ``other``.
_MOST_LICENSES, _MOST_NAME = 50, 200
#: What a card declares about a config beside options of the reader.
_NO_OPTIONS = {"config_name", "default", "description", "data_files", "data_dir", "features", "version"}
#: Values of reader options that are not text.
_TYPED = re.compile(r"-?\d+|true|false|null|~", re.IGNORECASE)


def parse_card(dataset: str, text: str, revision: str, description: str = "") -> DatasetCard:
    """Parse a dataset card. ``description`` is used if the card has none."""
    front = front_matter(text)
    license_ = front.get("license")
    licenses = list(map(str, _as_list("unknown" if license_ in (None, "", "null", "~") else license_)))
    if "other" in licenses and (name := str(front.get("license_name") or "").strip()):
        licenses.append(name[:_MOST_NAME])
    body = _split_card(text)[1].strip()
    return DatasetCard(
        dataset=dataset,
        description=body or description.strip() or str(front.get("pretty_name") or dataset),
        license="; ".join(licenses) if len(licenses) <= _MOST_LICENSES else f"{len(licenses)} licenses",
        languages=tuple(map(str, _as_list(front.get("language") or []))),
        revision=revision,
    )


def front_matter(text: str) -> dict[str, Any]:
    """The fields before the description; if they are not valid YAML, or too many, those of the form ``name: value``.

    Values are text as written: in YAML ``no`` and ``on`` are booleans, and ``1_0`` and ``12:30`` are numbers.
    """
    try:
        loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # It makes texts, lists and dictionaries.
        front = yaml.load(_split_card(text)[0], loader)  # noqa: S506
        _check_size(front)
    except (yaml.YAMLError, ValueError, RecursionError):
        # One broken line must not hide the license.
        plain = {name: value.strip(" \t") for name, value in _PLAIN_FIELD.findall(_split_card(text)[0])}
        return {name: value.strip("\"'") for name, value in plain.items() if value}
    return front if isinstance(front, dict) else {}


def declared_configs(front: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a card declares about each config: ``data_files``, ``data_dir`` and options of the reader.

    A card that declares none has one config, ``default``, whose files the ``datasets`` library finds by their names.
    """
    entries = [entry for entry in _as_list(front.get("configs")) if isinstance(entry, dict)]
    return {str(entry.get("config_name", "default")): entry for entry in entries} or {"default": {}}


def reader_options(declared: dict[str, Any]) -> dict[str, Any]:
    """The options of the reader in what a card declares about a config; numbers, booleans and null have their types."""
    options = {name: value for name, value in declared.items() if name not in _NO_OPTIONS}
    typed = {name for name, value in options.items() if isinstance(value, str) and _TYPED.fullmatch(value)}
    return options | {name: yaml.safe_load(options[name]) for name in typed}


def declared_features(front: dict[str, Any], config: str) -> dict[str, Any]:
    """The features of a config's columns that a card declares, which include class labels."""
    from datasets import Features

    infos = [info for info in _as_list(front.get("dataset_info")) if isinstance(info, dict)]
    if len(infos) > 1 or front.get("configs"):  # Otherwise the only one is meant, whatever its name is.
        infos = [info for info in infos if info.get("config_name", config) == config]
    infos.append(declared_configs(front).get(config, {}))
    columns = [column for info in infos for column in _as_list(info.get("features") or [])]
    features: dict[str, Any] = {}
    for column in columns:
        with suppress(Exception):  # A type that the library does not know: the values are read as they are.
            features |= Features._from_yaml_list([column])
    return features


def label_names(feature: Any, column: str = "") -> dict[str, list[str]]:
    """The class names of every label column of the library's features, also nested and listed, by flat column."""
    from datasets import ClassLabel

    if isinstance(feature, dict):
        prefix = f"{column}." if column else ""
        nested = (label_names(inner, f"{prefix}{name}") for name, inner in feature.items())
        return {name: names for part in nested for name, names in part.items()}
    if hasattr(feature, "feature"):
        return label_names(feature.feature, column)
    return {column: list(map(str, feature.names))} if isinstance(feature, ClassLabel) and feature.names else {}


def _check_size(front: Any) -> None:
    """Raise ValueError if there are too many values or levels. An alias counts as all that it stands for."""
    level: list[Any] = [front]
    for _ in range(_MOST_LEVELS):
        level = list(islice(chain.from_iterable(map(_inner, level)), _MOST_VALUES + 1))
        if len(level) > _MOST_VALUES:
            raise ValueError(f"the front matter has more than {_MOST_VALUES} values")
    if level:
        raise ValueError(f"the front matter has more than {_MOST_LEVELS} levels")


def _inner(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _split_card(text: str) -> tuple[str, str]:
    """Front matter and body. A card that is cut off may have no end of its front matter."""
    match = _FRONT_MATTER.match(text)
    if match is None and text.startswith("---") and len(text) >= MOST_CHARACTERS:
        return text[3:], ""
    return (match[1], text[match.end() :]) if match else ("", text)
