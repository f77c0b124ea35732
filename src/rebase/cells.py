"""Rows as text: how nested values become flat cells, and which cells are worth embedding."""

import datetime
import decimal
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

_URL = re.compile(r"\s*(https?|ftp)://\S+\s*", re.IGNORECASE)
_HEX = re.compile(r"\s*(0x)?[0-9a-f-]{16,}\s*", re.IGNORECASE)
_SURROGATES = re.compile("[\ud800-\udfff]")


def flatten_row(row: Mapping[str, Any], label_names: Mapping[str, list[str]]) -> dict[str, str]:
    """Turn a row into ``{column: text}``: nested columns joined by ``.``, empty and binary values left out.

    ``label_names`` maps a flat column to the names of its class labels (method.md section 1).
    """
    return {column: text for column, value in _leaves("", row) if (text := _text(value, label_names.get(column)))}


def _leaves(prefix: str, value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        column = f"{prefix}{key}"
        if isinstance(item, Mapping):
            yield from _leaves(f"{column}.", item)
        else:
            yield column, item


def _text(value: Any, names: list[str] | None = None) -> str:
    """One value as text; the empty string where there is nothing to say."""
    if value is None or isinstance(value, bytes | bytearray) or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and names is not None:
        return names[value] if 0 <= value < len(names) else ""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, float | decimal.Decimal):
        return f"{value:g}" if isinstance(value, float) and abs(value) < 1e15 else str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {text}" for key, item in value.items() if (text := _text(item)))
    if isinstance(value, list | tuple):
        return "; ".join(text for item in value if (text := _text(item, names)))
    return _SURROGATES.sub("\ufffd", str(value)).replace("\x00", "").strip()


def worth_embedding(text: str) -> bool:
    """Whether a cell says something that a task could match: not a URL, not a hash or id, not only digits."""
    return any(map(str.isalpha, text)) and not _URL.fullmatch(text) and not _HEX.fullmatch(text)


def row_json(cells: Mapping[str, str]) -> str:
    """The row as JSON text, columns in their own order."""
    return json.dumps(cells, ensure_ascii=False)


def content_hash(cells: Mapping[str, str]) -> str:
    """SHA-256 over a row's values in order, whatever its columns are called: mirrors have the same one."""
    return hashlib.sha256("\x1f".join(cells.values()).encode()).hexdigest()
