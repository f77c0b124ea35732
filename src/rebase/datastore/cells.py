"""Rows as text: flatten nested values into cells, and decide which cells are embedded."""

import datetime
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Set
from typing import Any

_URL = re.compile(r"\s*(https?|ftp)://\S+\s*", re.IGNORECASE)
_HEX = re.compile(r"\s*(0x)?[0-9a-f-]{16,}\s*", re.IGNORECASE)
_LETTERS = re.compile(r"""[\W_]*(?:[a-zA-Z][\s'"()\[\],;]+)*[a-zA-Z][\W_]*""")  # (b), or ['A', 'B', 'C', 'D']
_INDEX = re.compile(r"\s*-?\d{1,6}(?:\.0+)?\s*")  # Of a class label, in a CSV file.
_SURROGATES = re.compile("[\ud800-\udfff]")
#: The fields of an image, audio, video or document in the ``datasets`` library; the second set is decoded audio.
_MEDIA = ({"bytes", "path"}, {"array", "path", "sampling_rate"})


def flatten_row(row: Mapping[str, Any], label_names: Mapping[str, list[str]]) -> dict[str, str]:
    """Turn a row into ``{column: text}``: nested columns are joined by ``.``; empty, binary and media values left out.

    ``label_names`` maps a flat column to the names of its class labels (docs/method.md section 1).
    """
    cells: dict[str, str] = {}
    for column, value in _leaves("", row):
        if text := _clean(_to_text(value, column, label_names)):
            name = _clean(column) or "unnamed"
            while name in cells:  # A nested column may flatten to the name of another one.
                name += "'"
            cells[name] = text
    return cells


def is_media(fields: Set[str]) -> bool:
    """Whether a nested value with these fields is an image, audio, video or document."""
    return fields in _MEDIA


def worth_embedding(text: str) -> bool:
    """Whether a task could match the cell: it has a letter, and is no URL, hash or id, nor single letters alone.

    Single letters, such as those of options, would be the best match of most texts, because they are near everything.
    Hashes and ids are hexadecimal, at least 16 characters long, possibly with dashes. ``embed.cells: all`` embeds every
    cell.
    """
    # A list of a URL and empty items is JSON.
    text = text.strip('[]", ')
    return any(map(str.isalpha, text)) and not any(noise.fullmatch(text) for noise in (_URL, _HEX, _LETTERS))


def row_json(cells: Mapping[str, str]) -> str:
    """The row as JSON text, in the order of its columns."""
    return json.dumps(cells, ensure_ascii=False)


def content_hash(cells: Mapping[str, str]) -> str:
    """SHA-256 of a row's values in order; column names do not count, so duplicates have the same hash."""
    return hashlib.sha256("\x00".join(cells.values()).encode()).hexdigest()


def _leaves(prefix: str, value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        column = f"{prefix}{key}"
        if isinstance(item, dict) and not is_media(item.keys()):
            yield from _leaves(f"{column}.", item)
        else:
            yield column, item


def _to_text(value: Any, column: str, label_names: Mapping[str, list[str]]) -> str:
    """One value as text; the empty string if it has none."""
    if isinstance(value, str):
        is_index = column in label_names and value not in label_names[column] and _INDEX.fullmatch(value)
        if not is_index:
            return value.strip()
        value = float(value)
    if isinstance(value, float) and column in label_names and value.is_integer():
        value = int(value)  # A column of integers has floats if a value is missing.
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
        return number_to_text(value)
    if isinstance(value, dict):
        if is_media(value.keys()):
            return ""
        texts = {key: _to_text(item, f"{column}.{key}", label_names) for key, item in value.items()}
        return ", ".join(f"{key}: {text}" for key, text in texts.items() if text)
    if isinstance(value, list | tuple):
        return _join([_clean(_to_text(item, column, label_names)) for item in value])
    return str(value).strip()


def _join(items: list[str]) -> str:
    """The items of a list joined by ``; ``, or as JSON if they could not be told apart then; empty if all are."""
    text = "; ".join(items)
    is_ambiguous = not all(items) or any("; " in item for item in items) or (text[:1], text[-1:]) == ("[", "]")
    return (json.dumps(items, ensure_ascii=False) if is_ambiguous else text) if any(items) else ""


def number_to_text(value: float) -> str:
    """All digits of a number, without the ``.0`` that a column of integers gets if a value is missing."""
    if math.isnan(value):
        return ""
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def _clean(text: str) -> str:
    """The text without half surrogate pairs, NUL and outer spaces, which some readers do not accept."""
    if not text.isascii():
        text = _SURROGATES.sub("\ufffd", text)
    return text.replace("\x00", "").strip()
