"""The SQLite file of cached responses: tables, transactions, files of earlier versions, and damaged files.

It uses sqlite3 directly: diskcache evicts and pickles its entries, and sqlite-utils has neither locks between processes
nor a way to save what is readable in a damaged file.
"""

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

from rebase.errors import RebaseError
from rebase.teacher.protocol import Request, Response

logger = logging.getLogger(__name__)

#: A lower bound of a row's size in bytes: its key is in the row and in an index.
_SMALLEST_ROW = 128
#: Seconds to wait for another process that writes.
_LOCK_TIMEOUT = 60

_TABLES = (
    """CREATE TABLE IF NOT EXISTS responses (
        key TEXT PRIMARY KEY,           -- SHA-256 of everything that the response depends on
        provider TEXT NOT NULL,
        model TEXT NOT NULL,
        text TEXT NOT NULL,
        finish TEXT NOT NULL,
        input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        created TEXT NOT NULL,          -- UTC, ISO 8601
        request TEXT NOT NULL,          -- the request as JSON
        seconds REAL NOT NULL DEFAULT 0,
        batch INTEGER NOT NULL DEFAULT 0
    )""",
    "CREATE INDEX IF NOT EXISTS responses_by_model ON responses (provider, model)",
    """CREATE TABLE IF NOT EXISTS batches (
        token TEXT PRIMARY KEY,         -- ours, chosen before the provider gives the batch an id
        batch_id TEXT,                  -- the provider's
        provider TEXT NOT NULL,
        model TEXT NOT NULL,
        created TEXT NOT NULL,
        owner TEXT NOT NULL,            -- host:process that submits it
        is_open INTEGER NOT NULL        -- its responses have not been collected
    )""",
    """CREATE TABLE IF NOT EXISTS batch_items (
        token TEXT NOT NULL,
        key TEXT NOT NULL,
        request TEXT NOT NULL,
        PRIMARY KEY (token, key)
    ) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS batch_items_by_key ON batch_items (key)",
)
COLUMNS = (
    "key", "provider", "model", "text", "finish", "input_tokens", "output_tokens", "created", "request",
    "seconds", "batch",
)  # fmt: skip
#: The types of the columns that are not text.
_TYPES: dict[str, type | tuple[type, ...]] = {
    "input_tokens": int, "output_tokens": int, "seconds": (int, float), "batch": int,
}  # fmt: skip
INSERT = f"INSERT OR IGNORE INTO responses ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608


class CacheFile:
    """An open file that several threads and processes may use at the same time.

    A damaged file is renamed with a warning, and replaced by a new one with everything that is readable in it.

    Raises:
        RebaseError: The file cannot be opened or used.

    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
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
            raise RebaseError(f"The response cache {self._path} cannot be used: {error}. Run again.") from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit at the end, or roll back on an error."""
        with self.connected() as connection, _transaction(connection):
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
    return values["key"] == Request.from_json(values["request"]).key(values["provider"], values["model"])


def response_row(response: Response, request: str, provider: str, model: str) -> tuple[Any, ...]:
    """Return the row of ``responses`` for a response to a request in JSON."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return (
        response.key, provider, model, response.text, response.finish, response.input_tokens, response.output_tokens,
        created, request, response.seconds, int(response.batch),
    )  # fmt: skip


def use_earlier_file(path: Path) -> None:
    """Rename ``replies.sqlite``, the name of earlier versions, to ``path``, if only the former exists."""
    earlier = path.with_name("replies.sqlite")
    if path.exists() or not earlier.exists():
        return
    try:
        # With the write-ahead log written back, the file is complete without the files beside it.
        with closing(sqlite3.connect(earlier, timeout=_LOCK_TIMEOUT)) as connection, suppress(sqlite3.DatabaseError):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        _rename(earlier, path)
    except FileNotFoundError:  # another process has renamed it
        return
    logger.info("The response cache %s of an earlier version is now %s.", earlier, path)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_LOCK_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        _use_write_ahead_log(connection)
        result = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if result != "ok":
            damage = sqlite3.DatabaseError(result)
            damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise damage
        _make_tables(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Let processes read while another one writes. SQLite does not wait for its lock here, so this function does.

    A commit then survives a kill of the process without waiting for the disk.
    """
    deadline = time.monotonic() + _LOCK_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            return
        except sqlite3.OperationalError as error:
            if _error_kind(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _make_tables(connection: sqlite3.Connection) -> None:
    """Create missing tables and columns; versions before 0.3 called the table ``replies``."""
    with _transaction(connection):
        if _has_earlier_name(connection):
            connection.execute("ALTER TABLE replies RENAME TO responses")
            connection.execute("DROP INDEX IF EXISTS replies_by_model")
        for statement in _TABLES:
            connection.execute(statement)
        columns = {name for _, name, *_ in connection.execute("PRAGMA table_info(responses)")}
        for column in ("seconds REAL NOT NULL DEFAULT 0", "batch INTEGER NOT NULL DEFAULT 0"):
            if column.split()[0] not in columns:  # version 0.1
                connection.execute(f"ALTER TABLE responses ADD COLUMN {column}")


def _has_earlier_name(connection: sqlite3.Connection) -> bool:
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return "replies" in names and "responses" not in names


def _connect_or_rebuild(path: Path) -> sqlite3.Connection:
    """Connect; a damaged file is rebuilt by the first process that finds it."""
    try:
        return _connect(path)
    except sqlite3.DatabaseError as error:
        if not _is_damage(error):
            raise
    with closing(sqlite3.connect(f"{path}.rebuilding", timeout=_LOCK_TIMEOUT, isolation_level=None)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
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
        with closing(_connect(new)) as target:
            count = _salvage(path, target)
        damaged = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
        _rename(path, damaged)
        new.rename(path)
    logger.warning(
        "The response cache %s was damaged (%s) and is now %s. Saved the %d responses that are whole.",
        path, damage, damaged, count,
    )  # fmt: skip
    return _connect(path)


def _rename(path: Path, new: Path) -> None:
    """Rename a file together with its log."""
    path.rename(new)
    for suffix in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{new}{suffix}")


def _salvage(damaged: Path, target: sqlite3.Connection) -> int:
    """Copy the readable rows of all tables, and of the responses those that are valid; returns their number."""
    saved = 0
    with closing(sqlite3.connect(damaged)) as source, _transaction(target):
        for row in _readable_responses(source, damaged.stat().st_size):
            with suppress(ValueError, KeyError, TypeError):
                if is_valid(row):
                    saved += target.execute(INSERT, row).rowcount
        for token, batch_id, provider, model, created, owner, is_open in _readable(source, "batches", "rowid"):
            with suppress(ValueError, TypeError):
                values = (token, batch_id, provider, model, datetime.fromisoformat(created).isoformat(), owner, is_open)
                target.execute("INSERT OR IGNORE INTO batches VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        for row in _readable(source, "batch_items", "token", "key"):
            target.execute("INSERT OR IGNORE INTO batch_items VALUES (?, ?, ?)", row)
        target.execute("DELETE FROM batch_items WHERE token NOT IN (SELECT token FROM batches WHERE is_open)")
    return saved


def _readable(source: sqlite3.Connection, table: str, *order: str) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a table from both ends up to the first damage, some of them twice."""
    for direction in ("", " DESC"):
        ordered = ", ".join(name + direction for name in order)
        with suppress(sqlite3.DatabaseError):
            yield from source.execute(f"SELECT * FROM {table} ORDER BY {ordered}")  # noqa: S608


def _readable_responses(source: sqlite3.Connection, file_bytes: int) -> Iterator[tuple[Any, ...]]:
    """Yield the responses one by one, so that a damaged page costs only its own rows."""
    table = "responses"
    with suppress(sqlite3.DatabaseError):
        table = "replies" if _has_earlier_name(source) else "responses"
    select = f"SELECT rowid, {', '.join(COLUMNS)} FROM {table} WHERE rowid >= ? ORDER BY rowid LIMIT 1"  # noqa: S608
    row_id, unreadable_count = 1, 0
    while unreadable_count <= file_bytes // _SMALLEST_ROW:
        try:
            row = source.execute(select, (row_id,)).fetchone()
        except sqlite3.DatabaseError:
            row_id, unreadable_count = row_id + 1, unreadable_count + 1
            continue
        if row is None:
            return
        yield row[1:]
        row_id, unreadable_count = row[0] + 1, 0


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    return _error_kind(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _error_kind(error: sqlite3.Error) -> int:
    """Return the primary result code: the low byte of an SQLite error code."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
