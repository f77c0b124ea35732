"""Read text files: no cell of a CSV file is taken for a number, and an odd row does not affect the others."""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import IO, Any

import pyarrow as pa

from rebase.datastore.sources.errors import TooLargeError
from rebase.datastore.sources.rows import Row, RowSample

_BATCH_ROWS = 1000
_BATCH_CHARACTERS = 2**24
#: The most of a file that must be in memory as a whole, such as one JSON value.
MAX_CHARACTERS = 2**30
csv.field_size_limit(2**28)  # Bounds what an unclosed quote may collect; the default is 128 KiB.

_ENCODINGS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def open_text(stream: IO[bytes], encoding: str | None = None) -> io.TextIOWrapper:
    """Decode a stream: by its byte order mark, as ``encoding``, or as UTF-16 or UTF-8. Invalid bytes become U+FFFD."""
    head = stream.read(4)
    stream.seek(0)
    detected = next((name for mark, name in _ENCODINGS.items() if head.startswith(mark)), encoding)
    if not detected and head[1::2] == b"\x00\x00":
        detected = "utf-16-le"
    if not detected and head[::2] == b"\x00\x00":
        detected = "utf-16-be"
    return io.TextIOWrapper(stream, detected or "utf-8", errors="replace", newline="")


def text_tables(stream: IO[bytes], column: str, options: dict[str, Any]) -> Iterator[pa.Table]:
    """The lines of a text, or its paragraphs, or the whole text, by the library's option ``sample_by``."""
    lines = (line.replace("\r\n", "\n") for line in open_text(stream, options.get("encoding")))
    unit = options.get("sample_by", "line" if column == "text" else "document")
    texts: Iterable[str] = (line.rstrip("\n") for line in lines) if unit == "line" else [_join(lines)]
    if unit == "paragraph":
        texts = filter(None, re.split("\n\n", next(iter(texts))))
    for batch in _batches(texts, len):
        yield pa.table([pa.array(batch, pa.string())], [column])


# ------------------------------------------------------------------------------------------------------------ CSV


def csv_tables(stream: IO[bytes], name: str, options: dict[str, Any], sample: RowSample) -> Iterator[pa.Table]:
    """The rows of a CSV or TSV file as text; an empty cell is null.

    Rows with more cells than there are columns are counted as malformed. ``options`` are those of ``pandas.read_csv``
    that say how a file is split: ``sep``, ``header``, ``names``, ``skiprows``, ``usecols``, ``comment``, ``quotechar``
    and the like; those that say what a value means are ignored.
    """
    records = _csv_records(_lines(open_text(stream, options.get("encoding")), options), name, options)
    names, records = _header(records, options)
    first = list(islice(records, _BATCH_ROWS))
    if sum(len(cells) == len(names) + 1 and cells[-1] != "" for cells in first) > len(first) / 2:
        names = ["", *names]  # The rows begin with an index, which has no name in the header.
    width = len(names)
    names = [name or f"Unnamed: {number}" for number, name in enumerate(names)]
    used = options.get("usecols") or names
    columns = [number for number, name in enumerate(names) if name in used or number in used]
    for batch in _batches(chain(first, records), lambda cells: sum(map(len, cells))):
        rows = [cells for cells in batch if not any(cells[width:])]
        if len(rows) < len(batch):
            sample.malformed += len(batch) - len(rows)
            odd = next(cells for cells in batch if any(cells[width:]))
            sample.first_malformed = sample.first_malformed or f"the first has {len(odd)} cells, not {width}: {odd}"
        if rows:
            yield pa.table(
                [pa.array([_cell(cells, number) for cells in rows], pa.string()) for number in columns],
                [names[number] for number in columns],
            )


def _lines(stream: Iterable[str], options: dict[str, Any]) -> Iterator[str]:
    """The lines, without those that the options leave out."""
    skip, comment = options.get("skiprows") or 0, options.get("comment")
    skipped = set(skip) if isinstance(skip, list) else range(skip)
    for number, line in enumerate(stream):
        if number not in skipped and not (comment and line.startswith(comment)):
            yield line


def _csv_records(lines: Iterator[str], name: str, options: dict[str, Any]) -> Iterator[list[str]]:
    """The cells of each row that is not blank."""
    separator = options.get("delimiter") or options.get("sep") or ("\t" if ".tsv" in name.lower() else ",")
    if len(separator) > 1:  # A regular expression, as for pandas.
        return (re.split(separator, line.rstrip("\r\n")) for line in lines if line.strip())
    quoting = options.get("quoting") or csv.QUOTE_MINIMAL
    dialect = {
        "delimiter": separator,
        "quoting": csv.QUOTE_MINIMAL if quoting == csv.QUOTE_NONNUMERIC else quoting,
        **{option: options[option] for option in _DIALECT if options.get(option) is not None},
    }
    return (cells for cells in _split(lines, dialect) if cells and not (len(cells) == 1 and cells[0].isspace()))


_DIALECT = ("quotechar", "escapechar", "doublequote", "skipinitialspace")


def _split(lines: Iterator[str], dialect: dict[str, Any]) -> Iterator[list[str]]:
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


def _header(records: Iterator[list[str]], options: dict[str, Any]) -> tuple[list[str], Iterator[list[str]]]:
    """The names of the columns, and the records after the header."""
    names, header = options.get("names") or options.get("column_names"), options.get("header", "infer")
    if header is None or (names and header == "infer"):
        first = next(records, [])
        return names or list(map(str, range(len(first)))), chain([first] if first else [], records)
    row = next(islice(records, header if isinstance(header, int) else 0, None), [])
    return names or row, records


def _cell(cells: list[str], number: int) -> str | None:
    return cells[number] or None if number < len(cells) else None


# ----------------------------------------------------------------------------------------------------------- JSON


def json_tables(stream: IO[bytes], options: dict[str, Any]) -> Iterator[pa.Table]:
    """The rows of a file of JSON Lines, or of one JSON value, as JSON text in one column (see ``json_rows``)."""
    texts = _json_texts(open_text(stream, options.get("encoding")), options.get("field"))
    for batch in _batches(texts, len):
        yield pa.table([pa.array(batch, pa.string())], ["json"])


def json_rows(table: pa.Table) -> Iterator[Row]:
    """Parse the rows of a table of ``json_tables``; the reason instead of a row that is no JSON object."""
    for text in table.column(0):
        try:
            row = json.loads(text.as_py())
        except (ValueError, RecursionError):
            row = None
        yield row if isinstance(row, dict) else "malformed_row"


def _json_texts(stream: Iterable[str], key: str | None) -> Iterator[str]:
    """Each row as JSON text. ``key`` names the field of an object that has the rows."""
    lines = (line for line in stream if not line.isspace())
    first = next(lines, "")
    second = next(lines, "")
    if second and not key and _parse(first)[0]:
        yield from chain([first, second], lines)
        return
    text = _join(chain([first, second], lines))
    is_valid, value = _parse(text)
    if not is_valid:
        yield from _values_in(text)
        return
    if key:
        value = value[key]
    yield from map(json.dumps, _records(value, is_line=not second))


def _join(lines: Iterable[str]) -> str:
    """All lines. Raises TooLargeError if they are too long: a small compressed file can expand to any size."""
    joined = io.StringIO()
    for line in lines:
        if joined.tell() + len(line) > MAX_CHARACTERS:
            raise TooLargeError(f"a text that is read as a whole has more than {MAX_CHARACTERS:,} characters")
        joined.write(line)
    return joined.getvalue()


def _parse(text: str) -> tuple[bool, Any]:
    """Whether the text is valid JSON, and its value."""
    try:
        return True, json.loads(text)
    except (ValueError, RecursionError):
        return False, None


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


def _records(value: Any, is_line: bool) -> Iterable[Any]:
    """The rows in a file that is one JSON value. ``is_line``: it is one line, which may be a row of JSON Lines."""
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
        return ({**shared, **item} for item in value[lists[0]])
    columns = list(value.values())
    if all(isinstance(column, dict) and column.keys() == columns[0].keys() for column in columns):
        return ({name: value[name][key] for name in value} for key in columns[0])  # As pandas writes a table.
    if all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        return (dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True))
    return [value]


def _innermost(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each innermost object that has lists: in SQuAD's files a question, with its context and title.

    Lists of plain objects, such as a question's answers, become columns.
    """
    lists = [key for key, items in record.items() if _are_objects(items)]
    deeper = [key for key in lists if any(isinstance(part, list) for item in record[key] for part in item.values())]
    if len(deeper) == 1:
        shared = {key: item for key, item in record.items() if key != deeper[0]}
        for item in record[deeper[0]]:
            yield from _innermost({**shared, **item})
    else:
        yield record | {key: _as_columns(record[key]) for key in lists}


def _as_columns(items: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(chain.from_iterable(items))
    return {name: [item.get(name) for item in items] for name in names}


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _batches(items: Iterable[Any], size: Callable[[Any], int]) -> Iterator[list[Any]]:
    """Consecutive items, in lists of bounded length and size."""
    batch: list[Any] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if len(batch) == _BATCH_ROWS or total > _BATCH_CHARACTERS:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch
