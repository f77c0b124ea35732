"""The store of responses: everything that was ever paid for, in one file, and the journal of what is on its way."""

import logging
import os
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Any

from rebase.errors import RebaseError
from rebase.teacher.protocol import Request, Response

logger = logging.getLogger(__name__)

#: No row takes fewer bytes: its key alone stands in it and in an index.
_LEAST_ROW = 128
#: Seconds to wait for another process that writes.
_PATIENCE = 60
#: No submission of a batch takes longer: then the process number is another one's by now.
_LONGEST_SUBMISSION = timedelta(hours=1)

_TABLES = """
CREATE TABLE IF NOT EXISTS responses (
    key TEXT PRIMARY KEY,           -- SHA-256 over all that the response depends on
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    text TEXT NOT NULL,
    finish TEXT NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    created TEXT NOT NULL,          -- UTC, ISO 8601
    request TEXT NOT NULL,          -- the request as JSON, to look up what was asked
    seconds REAL NOT NULL DEFAULT 0,
    batch INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS responses_by_model ON responses (provider, model);
CREATE TABLE IF NOT EXISTS batches (
    token TEXT PRIMARY KEY,         -- ours, given before the provider names the batch
    batch_id TEXT,                  -- the provider's
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    created TEXT NOT NULL,
    owner TEXT NOT NULL,            -- host:process that submits it
    is_open INTEGER NOT NULL        -- its responses have not been collected
);
CREATE TABLE IF NOT EXISTS batch_items (
    token TEXT NOT NULL,
    key TEXT NOT NULL,
    request TEXT NOT NULL,
    PRIMARY KEY (token, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS batch_items_by_key ON batch_items (key);
"""
_COLUMNS = (
    "key", "provider", "model", "text", "finish", "input_tokens", "output_tokens", "created", "request",
    "seconds", "batch",
)  # fmt: skip
#: The columns' types; the others are texts.
_KINDS: dict[str, type | tuple[type, ...]] = {
    "input_tokens": int, "output_tokens": int, "seconds": (int, float), "batch": int,
}  # fmt: skip
_INSERT = f"INSERT OR IGNORE INTO responses ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608
_IS_TAKEN = "SELECT 1 FROM responses WHERE key = ? UNION ALL SELECT 1 FROM batch_items WHERE key = ? LIMIT 1"
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM responses"  # noqa: S608
_SELECT_NUMBERED = f"SELECT rowid, {', '.join(_COLUMNS)} FROM responses"  # noqa: S608


def _this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


@dataclass(frozen=True)
class Batch:
    """A batch in the journal: our token, the provider's id once it is known, its items' keys, and who submits it."""

    token: str
    batch_id: str | None
    keys: tuple[str, ...]
    created: datetime
    owner: str = field(default_factory=_this_process)

    @property
    def is_being_submitted(self) -> bool:
        """If another process of this machine is about to submit it."""
        host, _, process = self.owner.rpartition(":")
        if self.batch_id is not None or host != socket.gethostname() or int(process) == os.getpid():
            return False
        if datetime.now(UTC) - self.created > _LONGEST_SUBMISSION:
            return False
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True


class ResponseCache:
    """Responses in one SQLite file, by key, and the journal of batches. A response is a transaction: a kill loses none.

    Several threads and several processes may use one file at once. RebaseError where it cannot be used. A damaged file
    is set aside with a warning, and a new one is made of all that is whole in it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._connection = _open(path)

    def get(self, key: str) -> Response | None:
        """The stored response, or None."""
        rows = self._do(
            "SELECT key, text, finish, input_tokens, output_tokens, seconds, batch FROM responses WHERE key = ?", (key,)
        )
        if not rows:
            return None
        key, text, finish, read, written, seconds, batch = rows[0]
        return Response(key, text, finish, read, written, seconds, bool(batch))

    def look_up(self, key: str) -> dict[str, Any] | None:
        """All that is stored with a response, the request as JSON text among it, or None."""
        rows = self._do(f"{_SELECT} WHERE key = ?", (key,))
        return dict(zip(_COLUMNS, rows[0], strict=True)) if rows else None

    def put(self, request: Request, response: Response, provider: str, model: str) -> None:
        """Store a response for good. One that is there already stays."""
        self._do(_INSERT, _values(response, request.to_json(), provider, model))

    def holds_any(self, provider: str, model: str) -> bool:
        """If there is any response of this teacher."""
        return bool(self._do("SELECT 1 FROM responses WHERE provider = ? AND model = ? LIMIT 1", (provider, model)))

    def tokens_per_character(self, provider: str, model: str, sample: int = 200) -> float | None:
        """Input tokens a character of this teacher's latest ``sample`` prompts; None where there are none."""
        rows = self._do(
            "SELECT request, input_tokens FROM responses WHERE provider = ? AND model = ? ORDER BY rowid DESC LIMIT ?",
            (provider, model, sample),
        )
        characters = sum(Request.from_json(request).characters for request, _ in rows)
        return sum(tokens for _, tokens in rows) / characters if characters else None

    # The journal of batches.

    def open_batch(self, batch: Batch, requests: Iterable[Request], provider: str, model: str) -> bool:
        """Write down a batch before it is submitted, with its requests in the order of its keys.

        False, with nothing written, where another process was quicker: one of the responses is stored by now, or in
        another open batch.
        """
        items = [(batch.token, key, request.to_json()) for key, request in zip(batch.keys, requests, strict=True)]
        with self._using() as connection, _transaction(connection):
            for key in batch.keys:
                if connection.execute(_IS_TAKEN, (key, key)).fetchone():
                    return False
            connection.execute(
                "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, 1)",
                (batch.token, batch.batch_id, provider, model, batch.created.isoformat(), batch.owner),
            )
            connection.executemany("INSERT INTO batch_items VALUES (?, ?, ?)", items)
        return True

    def adopt_batch(self, batch: Batch) -> bool:
        """Make this process the one that submits a batch without an id, if it is still its owner's of then."""
        with self._using() as connection:
            statement = "UPDATE batches SET owner = ? WHERE token = ? AND owner = ? AND is_open AND batch_id IS NULL"
            return connection.execute(statement, (_this_process(), batch.token, batch.owner)).rowcount == 1

    def open_batches(self, provider: str, model: str) -> list[Batch]:
        """The teacher's batches whose responses have not been collected, oldest first."""
        rows = self._do(
            "SELECT token, batch_id, created, owner FROM batches WHERE is_open AND provider = ? AND model = ? "
            "ORDER BY created",
            (provider, model),
        )
        batches = []
        for token, batch_id, created, owner in rows:
            keys = tuple(key for (key,) in self._do("SELECT key FROM batch_items WHERE token = ?", (token,)))
            batches.append(Batch(token, batch_id, keys, datetime.fromisoformat(created), owner))
        return batches

    def batch_ids(self) -> set[str]:
        """The provider's ids of all batches in the journal."""
        return {batch_id for (batch_id,) in self._do("SELECT batch_id FROM batches WHERE batch_id IS NOT NULL")}

    def name_batch(self, token: str, batch_id: str) -> None:
        """Write down the id that the provider gave."""
        self._do("UPDATE batches SET batch_id = ? WHERE token = ?", (batch_id, token))

    def put_batch(self, token: str, responses: Iterable[Response]) -> None:
        """Store a batch's responses and close it, in one transaction."""
        with self._using() as connection, _transaction(connection):
            (provider, model), *_ = connection.execute("SELECT provider, model FROM batches WHERE token = ?", (token,))
            for response in responses:
                asked = connection.execute(
                    "SELECT request FROM batch_items WHERE token = ? AND key = ?", (token, response.key)
                ).fetchone()
                if asked:
                    connection.execute(_INSERT, _values(response, asked[0], provider, model))
            _close_batch(connection, token)

    def close_batch(self, token: str) -> None:
        """Nothing more is to be collected of this batch."""
        with self._using() as connection, _transaction(connection):
            _close_batch(connection, token)

    # What people do with the store.

    def summary(self) -> list[tuple[str, str, int, int, int, str, str]]:
        """For each teacher: provider, model, responses, input tokens, output tokens, first and last day."""
        return self._do(
            "SELECT provider, model, count(*), sum(input_tokens), sum(output_tokens), min(created), max(created) "
            "FROM responses GROUP BY provider, model ORDER BY provider, model"
        )

    def export(self) -> Iterator[dict[str, Any]]:
        """Every response with its request, as ``load`` takes them."""
        last = 0
        while rows := self._do(f"{_SELECT_NUMBERED} WHERE rowid > ? ORDER BY rowid LIMIT 500", (last,)):
            yield from (dict(zip(_COLUMNS, row, strict=True)) for _, *row in rows)
            last = rows[-1][0]

    def load(self, lines: Iterable[dict[str, Any]]) -> tuple[int, int]:
        """Add exported responses; gives how many were new, and how many there were.

        RebaseError where a line is no exported response, or its key is not that of its request; then none is added.
        """
        new = total = 0
        with self._using() as connection, _transaction(connection):
            for total, line in enumerate(lines, start=1):
                try:
                    row = tuple(line[name] for name in _COLUMNS)
                    is_right = _is_whole(row)
                    new += connection.execute(_INSERT, row).rowcount if is_right else 0
                except (KeyError, TypeError, ValueError) as error:
                    raise RebaseError(
                        f"Line {total} is no exported response: {type(error).__name__} {error}."
                    ) from None
                if not is_right:
                    raise RebaseError(f"Line {total}: the key is not that of the request. Export the responses again.")
        return new, total

    def prune(self, provider: str | None, model: str | None, before: str | None) -> int:
        """Delete the responses of a provider, of a model, or older than a day (ISO 8601); gives how many."""
        where = {"provider = ?": provider, "model = ?": model, "created < ?": before}
        asked = {clause: value for clause, value in where.items() if value is not None}
        with self._using() as connection:
            clause = " AND ".join(asked) or "1"
            return connection.execute(f"DELETE FROM responses WHERE {clause}", tuple(asked.values())).rowcount  # noqa: S608

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _do(self, statement: str, values: tuple[Any, ...] = ()) -> list[Any]:
        with self._using() as connection:
            return connection.execute(statement, values).fetchall()

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._lock:
                yield self._connection
        except sqlite3.DatabaseError as error:
            raise RebaseError(f"The store of responses {self._path} cannot be used: {error}. Run again.") from error


def _values(response: Response, request: str, provider: str, model: str) -> tuple[Any, ...]:
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return (
        response.key, provider, model, response.text, response.finish, response.input_tokens, response.output_tokens, created, request,
        response.seconds, int(response.batch),
    )  # fmt: skip


def _is_whole(row: tuple[Any, ...]) -> bool:
    """If the row's key is that of its request. TypeError where a value is of the wrong kind."""
    said = dict(zip(_COLUMNS, row, strict=True))
    for name, value in said.items():
        if not isinstance(value, _KINDS.get(name, str)):
            raise TypeError(f"{name} is {value!r}")
    return said["key"] == Request.from_json(said["request"]).key(said["provider"], said["model"])


def _close_batch(connection: sqlite3.Connection, token: str) -> None:
    connection.execute("UPDATE batches SET is_open = 0 WHERE token = ?", (token,))
    connection.execute("DELETE FROM batch_items WHERE token = ?", (token,))


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _open(path: Path) -> sqlite3.Connection:
    """A connection to the store's file, which is made if it is not there and set aside if it is damaged."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _connect(path)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            return _rebuild(path)
    except (sqlite3.DatabaseError, OSError) as error:
        raise RebaseError(f"The store of responses {path} cannot be opened: {error}") from error


def _rebuild(path: Path) -> sqlite3.Connection:
    """Make a new store of what is whole in a damaged one, which is set aside: the first process that comes does it."""
    with closing(sqlite3.connect(f"{path}.rebuilding", timeout=_PATIENCE, isolation_level=None)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        try:
            return _connect(path)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            damage = error
        # A kill meanwhile leaves the damaged file where it is, for the next one to begin again.
        new = path.with_name(f"{path.name}.rebuilt")
        for suffix in ("", "-wal", "-shm"):
            Path(f"{new}{suffix}").unlink(missing_ok=True)
        with closing(_connect(new)) as store:
            count = _salvage(path, store)
        aside = _set_aside(path)
        new.rename(path)
    logger.warning(
        "The store of responses %s was damaged (%s). It lies in %s; the %d responses that are whole were saved.",
        path, damage, aside, count,
    )  # fmt: skip
    return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
    try:
        _use_write_ahead_log(connection)
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            damage = sqlite3.DatabaseError(verdict)
            damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise damage
        _make_tables(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _make_tables(connection: sqlite3.Connection) -> None:
    connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT;")
    there = {name for _, name, *_ in connection.execute("PRAGMA table_info(responses)")}
    for column in ("seconds REAL NOT NULL DEFAULT 0", "batch INTEGER NOT NULL DEFAULT 0"):
        if column.split()[0] not in there:  # a store of version 0.1
            connection.execute(f"ALTER TABLE responses ADD COLUMN {column}")


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Let one process read while another writes. SQLite does not wait its turn to set this, so we do.

    Then a commit need not wait for the disk to stand a kill of the process.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            return
        except sqlite3.OperationalError as error:
            if _kind(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _salvage(damaged: Path, store: sqlite3.Connection) -> int:
    """Copy every response that can be read and whose key fits its request from a damaged file; gives how many.

    Of the journal all that can be read is copied as well.
    """
    saved = 0
    with closing(sqlite3.connect(damaged)) as source, _transaction(store):
        for row in _readable_rows(source, damaged.stat().st_size):
            try:
                if _is_whole(row):
                    saved += store.execute(_INSERT, row).rowcount
            except (ValueError, KeyError, TypeError):
                continue
        for token, batch_id, provider, model, created, owner, is_open in _readable(source, "batches", "rowid"):
            try:
                values = (token, batch_id, provider, model, datetime.fromisoformat(created).isoformat(), owner, is_open)
                store.execute("INSERT OR IGNORE INTO batches VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            except (ValueError, TypeError):
                continue
        for row in _readable(source, "batch_items", "token", "key"):
            store.execute("INSERT OR IGNORE INTO batch_items VALUES (?, ?, ?)", row)
        store.execute("DELETE FROM batch_items WHERE token NOT IN (SELECT token FROM batches WHERE is_open)")
    return saved


def _readable(source: sqlite3.Connection, table: str, *order: str) -> Iterator[tuple[Any, ...]]:
    """The rows of a table from both ends up to the first damage, some of them twice."""
    for direction in ("", " DESC"):
        ordered = ", ".join(name + direction for name in order)
        try:
            yield from source.execute(f"SELECT * FROM {table} ORDER BY {ordered}")  # noqa: S608
        except sqlite3.DatabaseError:
            continue


def _readable_rows(source: sqlite3.Connection, size: int) -> Iterator[tuple[Any, ...]]:
    """The rows of ``responses`` one by one: a damaged page takes only its own rows with it. ``size`` is the file's."""
    number, unreadable = 1, 0
    while unreadable <= size // _LEAST_ROW:
        try:
            found = source.execute(f"{_SELECT_NUMBERED} WHERE rowid >= ? ORDER BY rowid LIMIT 1", (number,)).fetchone()
        except sqlite3.DatabaseError:
            number, unreadable = number + 1, unreadable + 1
            continue
        if found is None:
            return
        yield found[1:]
        number, unreadable = found[0] + 1, 0


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    return _kind(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _kind(error: sqlite3.Error) -> int:
    """The kind of an SQLite error: the low byte of its code."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _set_aside(path: Path) -> Path:
    """Rename the file and its log beside it; returns the new name."""
    aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        log = path.with_name(path.name + suffix)
        if log.exists():
            log.rename(aside.with_name(aside.name + suffix))
    return aside
