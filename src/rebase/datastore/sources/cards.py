"""Parse dataset cards: YAML front matter, followed by the description."""

import re
from typing import TYPE_CHECKING, Any

from rebase.records import DatasetCard

if TYPE_CHECKING:
    from datasets import Features

_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
_PLAIN_FIELD = re.compile(r"^(\w+):[ \t]+(\S.*?)[ \t]*$", re.MULTILINE)


def parse_card(dataset: str, text: str, revision: str, description: str = "") -> DatasetCard:
    """Parse a dataset card. ``description`` is used if the card has none."""
    front = front_matter(text)
    body = _split_card(text)[1].strip()
    return DatasetCard(
        dataset=dataset,
        description=body or description.strip() or str(front.get("pretty_name") or dataset),
        license="; ".join(map(str, as_list(front.get("license") or "unknown"))),
        languages=tuple(map(str, as_list(front.get("language") or []))),
        revision=revision,
    )


def front_matter(text: str) -> dict[str, Any]:
    """The fields before the description; if they are not valid YAML, those of the form ``name: value``."""
    import yaml

    try:
        front = yaml.safe_load(_split_card(text)[0])
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date that does not exist.
        # One broken line must not hide the license.
        return {name: value.strip("\"'") for name, value in _PLAIN_FIELD.findall(_split_card(text)[0])}
    return front if isinstance(front, dict) else {}


def declared_splits(front: dict[str, Any]) -> dict[str, dict[str, list[str]]] | None:
    """The configs that a card declares, with the file patterns of each split; None if it declares none."""
    entries = [entry for entry in as_list(front.get("configs")) if isinstance(entry, dict)]
    if not any(entry.get("data_files") for entry in entries):
        return None
    return {str(entry.get("config_name", "default")): _splits(entry.get("data_files")) for entry in entries}


def declared_features(front: dict[str, Any], config: str) -> "Features | None":
    """The features of a config that a card declares, which include class labels."""
    from datasets import Features

    for entry in as_list(front.get("dataset_info")):
        if isinstance(entry, dict) and entry.get("config_name", config) == config and entry.get("features"):
            return Features._from_yaml_list(entry["features"])
    return None


def as_list(value: Any) -> list[Any]:
    """The value, in a list if it is not a list."""
    return value if isinstance(value, list) else [value]


def _splits(declared: Any) -> dict[str, list[str]]:
    """The file patterns of each split; a card declares a path, several paths, or splits with theirs."""
    splits: dict[str, list[str]] = {}
    for item in as_list(declared):
        named = isinstance(item, dict)
        paths = item.get("path") if named else item
        split = str(item.get("split", "train")) if named else "train"
        splits.setdefault(split, []).extend(str(path) for path in as_list(paths) if path)
    return splits


def _split_card(text: str) -> tuple[str, str]:
    """Front matter and body."""
    match = _FRONT_MATTER.match(text)
    return (match[1], text[match.end() :]) if match else ("", text)
