"""The store that makes every reply paid for once: a teacher that looks there before it asks."""

import json
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from threading import Lock

from rebase.errors import RebaseError
from rebase.teacher.api import ApiTeacher
from rebase.teacher.protocol import Failure, Reply, Request, Session, Teacher

logger = logging.getLogger(__name__)

#: Requests read ahead of the answers at most, so that a caller who has enough can stop asking.
LOOK_AHEAD = 64
#: Seconds to wait for another process that writes.
_PATIENCE = 60

_TABLE = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY,           -- SHA-256 over all that the reply depends on
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    text TEXT NOT NULL,
    finish TEXT NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    created TEXT NOT NULL,          -- UTC, ISO 8601
    request TEXT NOT NULL           -- the request as JSON, to look up what was asked
)
"""


class ReplyStore:
    """Replies in one SQLite file, by key. Each reply is a transaction, so a kill loses none that was put.

    Several threads and several processes may use one file at once. RebaseError where it cannot be used; a damaged
    file is set aside with a warning and a new one begun.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._connection = _open(path)

    def get(self, key: str) -> Reply | None:
        """The stored reply, or None."""
        with self._using() as connection:
            row = connection.execute(
                "SELECT key, text, finish, input_tokens, output_tokens FROM replies WHERE key = ?", (key,)
            ).fetchone()
        return Reply(*row) if row else None

    def put(self, request: Request, reply: Reply, provider: str, model: str) -> None:
        """Store a reply for good. One that is there already stays."""
        values = (
            reply.key,
            provider,
            model,
            reply.text,
            reply.finish,
            reply.input_tokens,
            reply.output_tokens,
            datetime.now(UTC).isoformat(timespec="seconds"),
            json.dumps(asdict(request)),
        )
        with self._using() as connection:
            connection.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)

    def holds_any(self, provider: str, model: str) -> bool:
        """If there is any reply of this teacher."""
        with self._using() as connection:
            row = connection.execute(
                "SELECT 1 FROM replies WHERE provider = ? AND model = ? LIMIT 1", (provider, model)
            ).fetchone()
        return row is not None

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._lock:
                yield self._connection
        except sqlite3.DatabaseError as error:
            raise RebaseError(f"The store of replies {self._path} cannot be used: {error}. Run again.") from error


@dataclass(frozen=True)
class StoredTeacher:
    """A teacher that asks only for replies which are not in the store at ``path``, and stores those it gets.

    Failures are never stored: they are asked again by the next run.
    """

    teacher: Teacher
    path: Path

    @property
    def provider(self) -> str:
        """The provider's name."""
        return self.teacher.provider

    @property
    def model(self) -> str:
        """The model's name."""
        return self.teacher.model

    def check(self) -> None:
        """Raise RebaseError where the teacher's key is missing. Cheap: to be called before any work.

        Where the store holds replies of this teacher it only warns: a run that needs no others can be replayed.
        """
        if not isinstance(self.teacher, ApiTeacher):
            return
        try:
            self.teacher.check()
        except RebaseError as error:
            if not self._is_begun():
                raise
            logger.warning("Only replies that are stored in %s can be used. %s", self.path, error)

    def _is_begun(self) -> bool:
        if not self.path.exists():
            return False
        with closing(ReplyStore(self.path)) as store:
            return store.holds_any(self.provider, self.model)

    @contextmanager
    def open(self) -> Iterator["StoredSession"]:
        """Open the store. The teacher itself is opened when the first reply is missing, and closed at the end."""
        # The teacher is left first: replies still in flight then are stored before the store is closed.
        with closing(ReplyStore(self.path)) as store, ExitStack() as stack:
            yield StoredSession(self.teacher, store, stack)


class StoredSession:
    """An open store with a teacher behind it."""

    def __init__(self, teacher: Teacher, store: ReplyStore, stack: ExitStack) -> None:
        self._teacher = teacher
        self._store = store
        self._stack = stack
        self._session: Session | None = None

    def ask(self, requests: Iterable[Request]) -> Iterator[Reply | Failure]:
        """Answer each request, in the order given, from the store or else from the teacher."""
        source = iter(requests)
        while True:
            line = _Line()
            missing = self._missing(source, line)
            first = next(missing, None)
            if not line.keys:
                return
            if first is not None:
                for answer in self._ask_teacher(chain([first], missing), line):
                    line.answers[answer.key] = answer
                    yield from line.ready()
            yield from line.ready()

    def _missing(self, source: Iterator[Request], line: "_Line") -> Iterator[Request]:
        """Put requests in line and yield those whose replies are not stored, until the line is full."""
        for request in source:
            key = request.key(self._teacher.provider, self._teacher.model)
            is_repeated = key in line.keys
            line.keys.append(key)
            if not is_repeated:
                if stored := self._store.get(key):
                    line.answers[key] = stored
                else:
                    yield request
            if len(line.keys) >= LOOK_AHEAD:
                return

    def _ask_teacher(self, missing: Iterator[Request], line: "_Line") -> Iterator[Reply | Failure]:
        if self._session is None:
            self._session = self._stack.enter_context(self._teacher.open())
        # A reply is stored when it arrives, not when its turn comes.
        yield from self._session.ask(missing, arrived=self._put)

    def _put(self, request: Request, reply: Reply) -> None:
        self._store.put(request, reply, self._teacher.provider, self._teacher.model)


class _Line:
    """Requests that wait for their turn: their keys in order, and the answers so far."""

    def __init__(self) -> None:
        self.keys: deque[str] = deque()
        self.answers: dict[str, Reply | Failure] = {}

    def ready(self) -> Iterator[Reply | Failure]:
        """Take those at the head of the line that have their answer."""
        while self.keys and self.keys[0] in self.answers:
            key = self.keys.popleft()
            yield self.answers[key]
            if key not in self.keys:
                del self.answers[key]


def _open(path: Path) -> sqlite3.Connection:
    """A connection to the store's file, which is made if it is not there and set aside if it is damaged."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _connect(path)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            aside = _set_aside(path)
            logger.warning(
                "The store of replies %s was damaged (%s). It lies in %s; a new one is begun.", path, error, aside
            )
            return _connect(path)
    except (sqlite3.DatabaseError, OSError) as error:
        raise RebaseError(f"The store of replies {path} cannot be opened: {error}") from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
    try:
        _use_write_ahead_log(connection)
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            damage = sqlite3.DatabaseError(verdict)
            damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise damage
        connection.execute(_TABLE)
    except BaseException:
        connection.close()
        raise
    return connection


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Let one process read while another writes. SQLite does not wait its turn to set this, so we do."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if _kind(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    return _kind(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _kind(error: sqlite3.Error) -> int:
    """The kind of an SQLite error: the low byte of its code."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _set_aside(path: Path) -> Path:
    """Rename the file and its log beside it; returns the new name."""
    aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        log = path.with_name(path.name + suffix)
        if log.exists():
            log.rename(aside.with_name(aside.name + suffix))
    return aside
