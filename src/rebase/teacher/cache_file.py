"""The SQLite file of cached responses: tables, transactions, files of earlier versions, and damaged files.

It uses sqlite3 directly: diskcache evicts and pickles its entries, and sqlite-utils cannot save what is readable in a
damaged file.
"""

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

import xxhash
from filelock import FileLock

from rebase.errors import RebaseError
from rebase.teacher.protocol import Request, Response

logger = logging.getLogger(__name__)

#: A lower bound of a row's size in bytes: its key is in the row and in an index.
_SMALLEST_ROW = 128
#: Seconds to wait for another process that writes.
_LOCK_TIMEOUT = 60
#: Seconds to wait for another process that opens the file, which may have to rebuild it.
_OPENING_TIMEOUT = 600

_TABLES = """
    CREATE TABLE IF NOT EXISTS responses (
        key TEXT PRIMARY KEY,               -- SHA-256 of everything that the response depends on
        provider TEXT NOT NULL,
        model TEXT NOT NULL,
        text TEXT NOT NULL,
        finish TEXT NOT NULL,
        input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        created TEXT NOT NULL,              -- UTC, ISO 8601
        request TEXT NOT NULL,              -- the request as JSON
        seconds REAL NOT NULL DEFAULT 0,
        batch INTEGER NOT NULL DEFAULT 0,
        address TEXT NOT NULL DEFAULT '',   -- the server, if it is not the provider's own
        checksum TEXT NOT NULL DEFAULT ''   -- of what was paid for; empty in rows of earlier versions
    );
    CREATE INDEX IF NOT EXISTS responses_by_model ON responses (provider, model);
    CREATE TABLE IF NOT EXISTS batches (
        token TEXT PRIMARY KEY,             -- ours, chosen before the provider gives the batch an id
        batch_id TEXT,                      -- the provider's
        provider TEXT NOT NULL,
        model TEXT NOT NULL,
        created TEXT NOT NULL,
        owner TEXT NOT NULL,                -- of earlier versions
        is_open INTEGER NOT NULL,           -- its responses have not been collected
        address TEXT NOT NULL DEFAULT ''
    );
    CREATE TABLE IF NOT EXISTS batch_items (
        token TEXT NOT NULL,
        key TEXT NOT NULL,
        request TEXT NOT NULL,
        PRIMARY KEY (token, key)
    );
    CREATE INDEX IF NOT EXISTS batch_items_by_key ON batch_items (key);
"""
COLUMNS = (
    "key", "provider", "model", "text", "finish", "input_tokens", "output_tokens", "created", "request",
    "seconds", "batch", "address",
)  # fmt: skip
BATCH_COLUMNS = ("token", "batch_id", "provider", "model", "created", "owner", "is_open", "address")
#: Columns that files of earlier versions lack.
_ADDED = (
    ("responses", "seconds REAL NOT NULL DEFAULT 0"),
    ("responses", "batch INTEGER NOT NULL DEFAULT 0"),
    ("responses", "address TEXT NOT NULL DEFAULT ''"),
    ("responses", "checksum TEXT NOT NULL DEFAULT ''"),
    ("batches", "address TEXT NOT NULL DEFAULT ''"),
)
#: The types of the columns that are not text.
_TYPES: dict[str, type | tuple[type, ...]] = {
    "input_tokens": int, "output_tokens": int, "seconds": (int, float), "batch": int,
}  # fmt: skip


def insertion(table: str, columns: tuple[str, ...]) -> str:
    """Return the statement that inserts a row, unless there is one with its key."""
    return f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608


#: What a row's checksum covers.
_PAID = ("text", "finish", "request", "input_tokens", "output_tokens")
#: As blobs: a damaged text may not be UTF-8.
_CHECKSUM = f"checksum({', '.join(f'CAST({name} AS BLOB)' for name in _PAID)})"
_DAMAGED = f"checksum NOT IN ('', {_CHECKSUM})"
INSERT = (
    f"INSERT OR IGNORE INTO responses ({', '.join(COLUMNS)}, checksum) "  # noqa: S608
    f"SELECT *, {_CHECKSUM} FROM (SELECT {', '.join(f'? AS {name}' for name in COLUMNS)})"
)


class CacheFile:
    """An open file that several threads and processes may use at the same time.

    A damaged file is renamed with a warning, and replaced by a new one with everything that is readable in it. Raises
    RebaseError if the file cannot be opened or used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock", timeout=_OPENING_TIMEOUT):
                self._connection = _connect_or_rebuild(path)
        except (sqlite3.DatabaseError, OSError) as error:
            raise RebaseError(f"The response cache {path} cannot be opened: {error}") from error

    @contextmanager
    def connected(self) -> Iterator[sqlite3.Connection]:
        """Give the connection to one thread at a time."""
        try:
            with self._lock:
                yield self._connection
        except sqlite3.DatabaseError as error:
            raise RebaseError(f"The response cache {self.path} cannot be used: {error}. Run again.") from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit at the end, or roll back on an error."""
        with self.connected() as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection

    def execute(self, statement: str, values: tuple[Any, ...] = ()) -> list[Any]:
        """Run one statement in its own transaction; returns its rows."""
        with self.connected() as connection:
            return connection.execute(statement, values).fetchall()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def is_valid(row: tuple[Any, ...]) -> bool:
    """Whether the key of a row of ``responses`` is that of its request.

    Raises TypeError if a value has the wrong type, and ValueError or KeyError if the request is not a request.
    """
    values = dict(zip(COLUMNS, row, strict=True))
    for name, value in values.items():
        if not isinstance(value, _TYPES.get(name, str)):
            raise TypeError(f"{name} is {value!r}")
    request = Request.from_json(values["request"])
    return bool(values["key"] == request.key(values["provider"], values["model"], values["address"]))


def checksum(*values: bytes) -> str:
    """XXH3 of the values of a row."""
    return xxhash.xxh3_64_hexdigest(b"\0".join(values))


def count_damaged(connection: sqlite3.Connection) -> int:
    """The number of responses that are not as they were written; 0 in a file of an earlier version."""
    if "checksum" not in _columns_of(connection, "responses"):
        return 0
    connection.create_function("checksum", -1, checksum, deterministic=True)
    return int(connection.execute(f"SELECT count(*) FROM responses WHERE {_DAMAGED}").fetchone()[0])  # noqa: S608


def response_row(response: Response, request: str, *teacher: str) -> tuple[Any, ...]:
    """Return the row of ``responses`` for a response to a request in JSON; ``teacher``: provider, model, address."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    provider, model, address = teacher
    return (
        response.key, provider, model, response.text, response.finish, response.input_tokens, response.output_tokens,
        created, request, response.seconds, int(response.batch), address,
    )  # fmt: skip


def use_earlier_file(path: Path) -> None:
    """Rename ``replies.sqlite``, the name of earlier versions, to ``path``, if only the former exists."""
    earlier = path.with_name("replies.sqlite")
    if earlier.exists() and not path.exists():
        with suppress(FileNotFoundError):  # another process has renamed it
            _rename(earlier, path)
            logger.info("The response cache %s of an earlier version is now %s.", earlier, path)


def _rename(path: Path, new: Path) -> None:
    """Rename a file together with its write-ahead log, which goes first: without it responses would be missing."""
    with suppress(FileNotFoundError):
        Path(f"{path}-wal").rename(f"{new}-wal")
    Path(f"{path}-shm").unlink(missing_ok=True)
    path.rename(new)


def _connect(path: Path) -> sqlite3.Connection:
    """Open a file; creates missing tables and columns. Raises sqlite3.DatabaseError if it is damaged.

    With a write-ahead log, processes read while another one writes, and a commit survives a kill of the process.
    """
    connection = sqlite3.connect(path, timeout=_LOCK_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        result = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if result != "ok":
            damage = sqlite3.DatabaseError(result)
            damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise damage
        if _responses_table(connection) == "replies":
            connection.execute("ALTER TABLE replies RENAME TO responses")
            connection.execute("DROP INDEX IF EXISTS replies_by_model")
        connection.executescript(_TABLES)
        for table, column in _ADDED:
            if column.split()[0] not in _columns_of(connection, table):
                connection.execute(f"ALTER TABLE {table} ADD COLUMN {column}")
        if count := count_damaged(connection):
            _set_aside_damaged(connection)
            logger.warning(
                "%d responses of %s are damaged. They are in its table damaged_responses, and are requested again.",
                count, path,
            )  # fmt: skip
    except BaseException:
        connection.close()
        raise
    return connection


def _set_aside_damaged(connection: sqlite3.Connection) -> None:
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE IF NOT EXISTS damaged_responses AS SELECT * FROM responses WHERE 0")
        connection.execute(f"INSERT INTO damaged_responses SELECT * FROM responses WHERE {_DAMAGED}")  # noqa: S608
        connection.execute(f"DELETE FROM responses WHERE {_DAMAGED}")  # noqa: S608


def _responses_table(connection: sqlite3.Connection) -> str:
    """Return the name of the table of responses, which versions before 0.3 called ``replies``."""
    return "replies" if _columns_of(connection, "replies") and not _columns_of(connection, "responses") else "responses"


def _columns_of(connection: sqlite3.Connection, table: str) -> list[str]:
    return [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")]


def _connect_or_rebuild(path: Path) -> sqlite3.Connection:
    """Connect; a damaged file is rebuilt. The caller holds the lock."""
    try:
        return _connect(path)
    except sqlite3.DatabaseError as error:
        if not _is_damage(error):
            raise
        damage = error
    # If this process is killed, the damaged file is still in its place and the next process starts over.
    new = path.with_name(f"{path.name}.rebuilt")
    for suffix in ("", "-wal", "-shm"):
        Path(f"{new}{suffix}").unlink(missing_ok=True)
    with closing(_connect(new)) as target, closing(sqlite3.connect(path)) as source:
        count = _salvage(source, target, path.stat().st_size // _SMALLEST_ROW)
    damaged = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
    _rename(path, damaged)
    new.rename(path)
    logger.warning(
        "The response cache %s was damaged (%s) and is now %s. Saved the %d responses that are whole.",
        path, damage, damaged, count,
    )  # fmt: skip
    return _connect(path)


def _salvage(source: sqlite3.Connection, target: sqlite3.Connection, most_rows: int) -> int:
    """Copy the readable rows of all tables, and of the responses those that are valid; returns their number."""
    saved = 0
    with target:
        target.execute("BEGIN")
        for *values, written in _readable(source, "responses", (*COLUMNS, "checksum"), most_rows):
            with suppress(ValueError, KeyError, TypeError):
                if is_valid(tuple(values)) and written in {"", _checksum_of(values)}:
                    saved += target.execute(INSERT, values).rowcount
        for row in _readable(source, "batches", BATCH_COLUMNS, most_rows):
            with suppress(ValueError, TypeError, sqlite3.IntegrityError):
                datetime.fromisoformat(row[4])
                target.execute(insertion("batches", BATCH_COLUMNS), row)
        for row in _readable(source, "batch_items", ("token", "key", "request"), most_rows):
            target.execute("INSERT OR IGNORE INTO batch_items VALUES (?, ?, ?)", row)
        target.execute("DELETE FROM batch_items WHERE token NOT IN (SELECT token FROM batches WHERE is_open)")
    return saved


def _checksum_of(values: list[Any]) -> str:
    row = dict(zip(COLUMNS, values, strict=True))
    return checksum(*(str(row[name]).encode() for name in _PAID))


def _readable(
    source: sqlite3.Connection, table: str, columns: tuple[str, ...], most_rows: int
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a table one by one, so that a damaged page costs only its own rows."""
    present: list[str] = []
    with suppress(sqlite3.DatabaseError):
        table = _responses_table(source) if table == "responses" else table
        present = _columns_of(source, table)
    defaults = {"seconds": "0", "batch": "0", "address": "''", "checksum": "''"}
    selected = ", ".join(name if name in present else defaults.get(name, name) for name in columns)
    select = f"SELECT rowid, {selected} FROM {table} WHERE rowid > ? ORDER BY rowid LIMIT 1"  # noqa: S608
    last = unreadable_count = 0
    while unreadable_count <= most_rows:
        try:
            row = source.execute(select, (last,)).fetchone()
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):  # there is no such table
                return
            last, unreadable_count = last + 1, unreadable_count + 1
            continue
        if row is None:
            return
        yield row[1:]
        last, unreadable_count = row[0], 0


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether the primary result code, the low byte of an SQLite error code, means a damaged file."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
