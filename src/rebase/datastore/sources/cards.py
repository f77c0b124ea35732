"""Parse dataset cards: YAML front matter, followed by the description."""

import re
from contextlib import suppress
from itertools import chain
from typing import Any, ClassVar

import yaml

from rebase.records import DatasetCard

_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
_PLAIN_FIELD = re.compile(r"^(\w+):[ \t]+(\S.*?)[ \t]*$", re.MULTILINE)
#: Fields whose values, and what is nested in them, are text as written: a label may be called ``1.0`` or ``null``.
_TEXT_FIELDS = {"config_name", "data_files", "data_dir", "split", "path", "name", "names"}
_TEXT_TAG, _NULL_TAG = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"


class _CardLoader(yaml.SafeLoader):
    """YAML 1.2's types: 1.1 reads ``no`` and ``on`` as booleans, and ``1_0`` and ``12:30:45`` as numbers."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, value in node.value:
            if key.tag == _TEXT_TAG and key.value in _TEXT_FIELDS and value.tag != _NULL_TAG:
                _make_text(value)
        return super().construct_mapping(node, deep)


for _kind, _pattern, _first in (
    ("bool", "true|True|false|False", "tTfF"),
    ("int", r"[-+]?(0|[1-9]\d*)", "-+0123456789"),
    ("float", r"[-+]?\d+\.\d+", "-+0123456789"),
    ("null", "null|~|", ["n", "~", ""]),
    ("merge", "<<", "<"),
):
    _CardLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), list(_first))


def parse_card(dataset: str, text: str, revision: str, description: str = "") -> DatasetCard:
    """Parse a dataset card. ``description`` is used if the card has none."""
    front = front_matter(text)
    body = _split_card(text)[1].strip()
    return DatasetCard(
        dataset=dataset,
        description=body or description.strip() or str(front.get("pretty_name") or dataset),
        license="; ".join(map(str, _as_list(front.get("license") or "unknown"))),
        languages=tuple(map(str, _as_list(front.get("language") or []))),
        revision=revision,
    )


def front_matter(text: str) -> dict[str, Any]:
    """The fields before the description; if they are not valid YAML, those of the form ``name: value``."""
    try:
        front = yaml.load(_split_card(text)[0], _CardLoader)  # noqa: S506 - a subclass of the safe loader.
    except (yaml.YAMLError, ValueError, RecursionError):
        # One broken line must not hide the license.
        return {name: value.strip("\"'") for name, value in _PLAIN_FIELD.findall(_split_card(text)[0])}
    return front if isinstance(front, dict) else {}


def declared_configs(front: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a card declares about each config: ``data_files``, ``data_dir`` and options of the reader.

    A card that declares none has one config, ``default``, whose files the ``datasets`` library finds by their names.
    """
    entries = [entry for entry in _as_list(front.get("configs")) if isinstance(entry, dict)]
    return {str(entry.get("config_name", "default")): entry for entry in entries} or {"default": {}}


def declared_features(front: dict[str, Any], config: str) -> dict[str, Any]:
    """The features of a config's columns that a card declares, which include class labels."""
    from datasets import Features

    infos = [info for info in _as_list(front.get("dataset_info")) if isinstance(info, dict)]
    if len(infos) > 1 or front.get("configs"):  # Otherwise the only one is meant, whatever its name is.
        infos = [info for info in infos if info.get("config_name", config) == config]
    columns = [column for info in [*infos, declared_configs(front).get(config, {})] for column in _columns(info)]
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


def _columns(declared: dict[str, Any]) -> list[Any]:
    return _as_list(declared.get("features") or [])


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _make_text(node: yaml.Node) -> None:
    """Keep all scalars in a node as they are written."""
    pending, seen = [node], set()
    while pending:
        node = pending.pop()
        if node in seen:  # Aliases of one node: a small card may refer to it a billion times.
            continue
        seen.add(node)
        if isinstance(node, yaml.ScalarNode):
            node.tag = _TEXT_TAG
        elif isinstance(node, yaml.MappingNode):
            pending += chain.from_iterable(node.value)
        else:
            pending += node.value


def _split_card(text: str) -> tuple[str, str]:
    """Front matter and body."""
    match = _FRONT_MATTER.match(text)
    return (match[1], text[match.end() :]) if match else ("", text)
