"""Rows as text: how nested values become flat cells, and which cells are worth embedding."""

import datetime
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Set
from typing import Any

_URL = re.compile(r"\s*(https?|ftp)://\S+\s*", re.IGNORECASE)
_HEX = re.compile(r"\s*(0x)?[0-9a-f-]{16,}\s*", re.IGNORECASE)
_SURROGATES = re.compile("[\ud800-\udfff]")
#: What the ``datasets`` library stores an image, a sound, a video or a document as; the second is a decoded sound.
_MEDIA = ({"bytes", "path"}, {"array", "path", "sampling_rate"})


def flatten_row(row: Mapping[str, Any], label_names: Mapping[str, list[str]]) -> dict[str, str]:
    """Turn a row into ``{column: text}``: nested columns joined by ``.``; empty, binary and media values left out.

    ``label_names`` maps a flat column to the names of its class labels (docs/method.md section 1).
    """
    cells: dict[str, str] = {}
    for column, value in _leaves("", row):
        if text := _clean(_text(value, column, label_names)):
            cells[_unused(_clean(column) or "unnamed", cells)] = text
    return cells


def is_media(fields: Set[str]) -> bool:
    """Whether a nested value with these fields is an image, a sound, a video or a document."""
    return fields in _MEDIA


def _leaves(prefix: str, value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        column = f"{prefix}{key}"
        if isinstance(item, dict) and not is_media(item.keys()):
            yield from _leaves(f"{column}.", item)
        else:
            yield column, item


def _unused(column: str, cells: Mapping[str, str]) -> str:
    """The column's name, told apart from a nested column that flattens to the same one."""
    while column in cells:
        column += "'"
    return column


def _text(value: Any, column: str, label_names: Mapping[str, list[str]]) -> str:
    """One value as text; the empty string where there is nothing to say."""
    if isinstance(value, str):
        return value.strip()
    if value is None or isinstance(value, bytes | bytearray):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and column in label_names:
        names = label_names[column]
        return names[value] if 0 <= value < len(names) else ""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, dict):
        if is_media(value.keys()):
            return ""
        texts = {key: _text(item, f"{column}.{key}", label_names) for key, item in value.items()}
        return ", ".join(f"{key}: {text}" for key, text in texts.items() if text)
    if isinstance(value, list | tuple):
        return "; ".join(text for item in value if (text := _text(item, column, label_names)))
    return str(value).strip()


def _number(value: float) -> str:
    """All digits of a number; without ``.0``, which a column of integers gets where a value is missing."""
    if math.isnan(value):
        return ""
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def _clean(text: str) -> str:
    """The text as every reader takes it: valid Unicode, without NUL and outer spaces."""
    if not text.isascii():
        text = _SURROGATES.sub("\ufffd", text)
    return text.replace("\x00", "").strip()


def worth_embedding(text: str) -> bool:
    """Whether a cell says something that a task could match: it has a letter, and is neither a URL nor a hash or id.

    Hashes and ids are hexadecimal, with dashes or not, of at least 16 characters. ``embed.cells: all`` asks nothing.
    """
    return any(map(str.isalpha, text)) and not _URL.fullmatch(text) and not _HEX.fullmatch(text)


def row_json(cells: Mapping[str, str]) -> str:
    """The row as JSON text, columns in their own order."""
    return json.dumps(cells, ensure_ascii=False)


def content_hash(cells: Mapping[str, str]) -> str:
    """SHA-256 over a row's values in order, whatever its columns are called: mirrors have the same one."""
    return hashlib.sha256("\x00".join(cells.values()).encode()).hexdigest()
