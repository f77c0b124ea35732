"""Read rows of text files: no cell of a CSV file is taken for a number, and an odd row does not affect the others."""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice, zip_longest
from typing import IO, Any

from rebase.datastore.sources.errors import TooLargeError
from rebase.datastore.sources.rows import MALFORMED, Row, distinct

#: The most of a file that must be in memory as a whole, such as a line or one JSON value.
MAX_CHARACTERS = 2**28
#: The most values of one JSON value, and the most columns: empty ones have three characters, and many bytes.
MAX_VALUES, MAX_COLUMNS = 2**24, 2**20
#: The bytes by which an encoding is detected, and the largest share of odd characters in text.
_HEAD, _MOST_ODD = 2**16, 0.2
#: The least share of odd characters in UTF-16 that is read as UTF-8: a few zero bytes are an error in the text.
_LEAST_ODD = 0.1
#: Rows of a CSV file by which an unnamed first column is recognized.
_FIRST_ROWS = 1000
_DIALECT = ("quotechar", "escapechar", "doublequote", "skipinitialspace", "quoting")  # Options of the csv module, too.
csv.field_size_limit(2**28)  # Bounds what an unclosed quote may collect; the default is 128 KiB.

_ENCODINGS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def open_text(stream: IO[bytes], encoding: str | None, errors: str = "replace") -> Iterator[str]:
    """The lines of a stream, decoded: by its byte order mark, as ``encoding``, or as UTF-16 or UTF-8.

    Invalid bytes become U+FFFD unless ``errors`` is ``strict``. Raises ValueError if the content is no text, or has
    invalid bytes, and TooLargeError at a line that is too long.
    """
    head = stream.read(_HEAD)
    stream.seek(0)
    by_mark = next((name for mark, name in _ENCODINGS.items() if head.startswith(mark)), None)
    text = io.TextIOWrapper(stream, by_mark or encoding or _detect_encoding(head), errors=errors, newline="")
    try:
        while line := text.readline(MAX_CHARACTERS + 1):
            if len(line) > MAX_CHARACTERS:
                raise TooLargeError(f"a line has more than {MAX_CHARACTERS:,} characters")
            yield line
    except UnicodeDecodeError as error:
        raise ValueError(f"the content is not text in {text.encoding.upper()}; save it as UTF-8") from error


def _detect_encoding(head: bytes) -> str:
    """UTF-8, or UTF-16 if every other byte of ASCII characters is zero. Raises ValueError if the content is no text."""
    from datasets.utils.file_utils import MAGIC_NUMBER_TO_COMPRESSION_PROTOCOL

    for mark, format_ in MAGIC_NUMBER_TO_COMPRESSION_PROTOCOL.items():
        if head.startswith(mark):
            raise ValueError(f"the content is not text, but {format_}: name the file by its format")
    odd = _odd_share(head, "utf-8")
    zeros = {"utf-16-le": head[1::2].count(0), "utf-16-be": head[::2].count(0)}
    utf_16 = max(zeros, key=lambda name: zeros[name])
    if odd > _LEAST_ODD and zeros[utf_16] > 9 * min(zeros.values()) and _odd_share(head, utf_16) < odd / 9:
        return utf_16
    if odd > _MOST_ODD and len(head) > 64:
        raise ValueError(
            "the content is not text in UTF-8 or UTF-16; if it is text, `encoding` in the card names its own"
        )
    return "utf-8"


def _odd_share(head: bytes, encoding: str) -> float:
    """The share of invalid bytes, and of control and other characters without a meaning, in the decoded text."""
    text = head.decode(encoding, "replace")
    odd = sum(character == "\ufffd" or not (character.isprintable() or character.isspace()) for character in text)
    return odd / max(1, len(text))


def text_rows(lines: Iterable[str], column: str, options: dict[str, Any]) -> Iterator[Row]:
    """The lines of a text, or its paragraphs, or the whole text, by the library's option ``sample_by``."""
    unit = options.get("sample_by", "line" if column == "text" else "document")
    if unit != "line":
        text = _join(lines).replace("\r\n", "\n")
        lines = filter(None, text.split("\n\n")) if unit == "paragraph" else [text]
    return ({column: line.rstrip("\r\n")} for line in lines)


# ------------------------------------------------------------------------------------------------------------ CSV


def csv_rows(lines: Iterable[str], name: str, options: dict[str, Any]) -> Iterator[Row]:
    """The rows of a CSV or TSV file as text; None for an empty cell.

    Rows with more cells than there are columns are malformed. ``options`` are those of ``pandas.read_csv`` that say how
    a file is split: ``sep``, ``header``, ``names``, ``skiprows`` (a number), ``usecols``, ``comment``,
    ``quotechar`` and the like; those that say what a value means are ignored.
    """
    records = _records(lines, name, options)
    columns, header = options.get("names") or options.get("column_names"), options.get("header", "infer")
    if header is not None and not (columns and header == "infer"):
        named = next(islice(records, header if isinstance(header, int) else 0, None), [])
        columns = columns or [cell or f"Unnamed: {number}" for number, cell in enumerate(named)]
    first = list(islice(records, _FIRST_ROWS))
    if columns is None:
        columns = list(map(str, range(len(first[0]) if first else 0)))
    elif sum(len(cells) == len(columns) + 1 and cells[-1] != "" for cells in first) > len(first) / 2:
        columns = ["Unnamed: 0", *columns]  # The rows begin with an index, which the header does not name.
    columns = distinct(columns)
    chosen = options.get("usecols")
    used = [name if name in columns else columns[int(name)] for name in chosen] if chosen else columns
    for cells in chain(first, records):
        if any(cells[len(columns) :]):
            yield MALFORMED
        else:
            row = {name: cell or None for name, cell in zip_longest(columns, cells[: len(columns)])}
            yield {name: row[name] for name in used}


def _records(lines: Iterable[str], name: str, options: dict[str, Any]) -> Iterator[list[str]]:
    """The cells of each line that is not blank."""
    comment = options.get("comment")
    lines = (line for line in islice(lines, options.get("skiprows"), None) if not comment or line[0] != comment)
    separator = options.get("delimiter") or options.get("sep") or ("\t" if ".tsv" in name.lower() else ",")
    if len(separator) == 1:
        dialect = {option: options[option] for option in _DIALECT if option in options}
        records = _split(lines, dialect | {"delimiter": separator})
    else:
        pattern = _separator_pattern(separator)
        records = (re.split(pattern, line.rstrip("\r\n")) for line in lines)
    for cells in records:
        if len(cells) > MAX_COLUMNS:
            raise TooLargeError(f"there are more than {MAX_COLUMNS:,} columns")
        if len(cells) > 1 or cells == [""] or "".join(cells).strip(" \t"):
            yield cells


def _separator_pattern(separator: str) -> str:
    r"""The expression of a long separator: ``\s+``, or one or more texts such as ``;|,``.

    Raises ValueError for other regular expressions, which pandas accepts: matching may take forever.
    """
    if separator == r"\s+":
        return separator
    if re.search(r"[*+?(\[{.^$]|\\[^\Wt]", re.sub(r"\\\W", "", separator)):
        raise ValueError(rf"the card's separator {separator[:50]!r} is a regular expression; use \s+ or a text")
    text = re.sub(r"\\(\W)", r"\1", separator).replace(r"\t", "\t")
    texts = text.split("|")
    return "|".join(map(re.escape, texts)) if all(texts) else re.escape(text)


def _split(lines: Iterable[str], dialect: dict[str, Any]) -> Iterator[list[str]]:
    """The cells of each row. If a quote is never closed, the lines after it are read one by one."""
    pending: list[str] = []
    at_end = False

    def remembered() -> Iterator[str]:
        nonlocal at_end
        for line in lines:
            pending.append(line)
            yield line
        at_end = True

    for cells in csv.reader(remembered(), **dialect):
        if at_end:  # The reader looked for the end of a quote.
            for line in pending:
                yield next(csv.reader([line], **dialect))
        else:
            yield cells
        pending.clear()


# ----------------------------------------------------------------------------------------------------------- JSON


def json_texts(lines: Iterable[str], name: str, key: str | None = None) -> Iterator[str]:
    """The rows of a file of JSON Lines, or of one JSON value, as JSON text (see ``json_row``).

    ``key`` names the field of an object that has the rows. A file of one line has one row if it is JSON Lines by name.
    """
    lines = (line for line in lines if not line.isspace())
    first, second = next(lines, ""), next(lines, "")
    if second and not key and json_row(first) is not MALFORMED:
        for line in chain([first, second], lines):  # Joined files may lack a line break between them.
            yield from _values_in(line) if "}{" in line and json_row(line) is MALFORMED else [line]
        return
    text = _join(chain([first, second], lines))
    try:
        value = _parse(text)
    except (ValueError, RecursionError):
        yield from _values_in(text)
    else:
        is_line = not second and _JSON_LINES.search(name) is not None
        yield from map(json.dumps, _rows_in(value[key] if key else value, is_line))


def json_row(text: str) -> Row:
    """Parse a row; MALFORMED if it is no JSON object."""
    try:
        row = _parse(text)
    except (ValueError, RecursionError):
        return MALFORMED
    return row if isinstance(row, dict) else MALFORMED


def _parse(text: str) -> Any:
    """Parse JSON. Raises TooLargeError if it has too many values."""
    if len(text) > MAX_VALUES and sum(map(text.count, "[{,")) > MAX_VALUES:
        raise TooLargeError(f"a JSON value has more than {MAX_VALUES:,} values")
    return json.loads(text)


def _join(lines: Iterable[str]) -> str:
    """All lines. Raises TooLargeError if they are too long: a small compressed file can expand to any size."""
    joined = io.StringIO()
    for line in lines:
        if joined.tell() + len(line) > MAX_CHARACTERS:
            raise TooLargeError(f"a text that is read as a whole has more than {MAX_CHARACTERS:,} characters")
        joined.write(line)
    return joined.getvalue()


def _values_in(text: str) -> Iterator[str]:
    """The JSON values in a broken text: those of a cut list, or of lines of which some are broken.

    Where no value begins, the rest of the line is one broken value.
    """
    decoder = json.JSONDecoder()
    position = 0
    while start := _VALUE.search(text, position):
        try:
            _, position = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            position = text.find("\n", start.start()) + 1 or len(text)
        yield text[start.start() : position]


_VALUE = re.compile(r"[^\s,\[\]]")
_JSON_LINES = re.compile(r"\.(?:jsonl|ndjson)\b", re.IGNORECASE)


def _rows_in(value: Any, is_line: bool) -> Iterable[Any]:
    """The rows in a file that is one JSON value. ``is_line``: it is the one line of a file of JSON Lines."""
    if isinstance(value, list):
        return value if value and isinstance(value[0], dict) else ({"text": item} for item in value)
    if not isinstance(value, dict):
        return [value]
    lists = [key for key, items in value.items() if _are_objects(items)]
    if "data" in lists:
        return chain.from_iterable(map(_innermost, value["data"]))
    if is_line or not value:
        return [value]
    if len(lists) == 1:
        shared = {key: item for key, item in value.items() if key != lists[0]}
        return (shared | item for item in value[lists[0]])
    columns = list(value.values())
    if all(isinstance(column, dict) for column in columns):
        # As pandas writes a table: each column has the same index, of numbers. Else the objects are rows, by their ids.
        if not all(column.keys() == columns[0].keys() and all(map(str.isdecimal, column)) for column in columns):
            return columns if len(columns) > 1 else [value]
        columns = [list(column.values()) for column in columns]
    if all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        return (dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True))
    return [value]


def _innermost(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each innermost object that has lists: in SQuAD's files a question, with its context and title.

    Lists of plain objects, such as a question's answers, become columns.
    """
    lists = {key: items for key, items in record.items() if _are_objects(items)}
    deeper = [key for key in lists if any(isinstance(part, list) for item in lists[key] for part in item.values())]
    if len(deeper) == 1:
        shared = {key: item for key, item in record.items() if key != deeper[0]}
        for item in lists[deeper[0]]:
            yield from _innermost(shared | item)
    else:
        names = {key: dict.fromkeys(chain.from_iterable(items)) for key, items in lists.items()}
        yield record | {key: {name: [item.get(name) for item in lists[key]] for name in names[key]} for key in lists}


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
