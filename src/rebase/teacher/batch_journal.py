"""The journal of batches: each is recorded before it is submitted, so that an interrupted run finds it again."""

import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from rebase.teacher.cache_file import INSERT, CacheFile, response_row
from rebase.teacher.protocol import Request, Response

#: No submission takes longer; an older process number belongs to another process by now.
_LONGEST_SUBMISSION = timedelta(hours=1)


def _this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


@dataclass(frozen=True)
class Batch:
    """A batch: our token, the provider's id once it is known, the keys of its items, and who submits it."""

    token: str
    batch_id: str | None
    keys: tuple[str, ...]
    created: datetime
    owner: str = field(default_factory=_this_process)

    @property
    def is_being_submitted(self) -> bool:
        """Whether another process of this machine is submitting it now."""
        host, _, process = self.owner.rpartition(":")
        if self.batch_id is not None or host != socket.gethostname() or int(process) == os.getpid():
            return False
        if datetime.now(UTC) - self.created > _LONGEST_SUBMISSION:
            return False
        try:
            os.kill(int(process), 0)
        except OSError as error:
            return isinstance(error, PermissionError)  # it exists, and belongs to another user
        return True


class BatchJournal:
    """The batches in the file of the response cache."""

    def __init__(self, file: CacheFile) -> None:
        self._file = file

    def add(self, batch: Batch, requests: Iterable[Request], provider: str, model: str) -> bool:
        """Record a batch before it is submitted, with its requests in the order of its keys.

        Returns False and records nothing if another process was faster: one of the responses is cached, or is in
        another open batch.
        """
        items = [(batch.token, key, request.to_json()) for key, request in zip(batch.keys, requests, strict=True)]
        is_taken = "SELECT 1 FROM responses WHERE key = ? UNION ALL SELECT 1 FROM batch_items WHERE key = ? LIMIT 1"
        with self._file.transaction() as connection:
            if any(connection.execute(is_taken, (key, key)).fetchone() for key in batch.keys):
                return False
            connection.execute(
                "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, 1)",
                (batch.token, batch.batch_id, provider, model, batch.created.isoformat(), batch.owner),
            )
            connection.executemany("INSERT INTO batch_items VALUES (?, ?, ?)", items)
        return True

    def open_batches(self, provider: str, model: str) -> list[Batch]:
        """The teacher's batches whose responses have not been collected, oldest first."""
        rows = self._file.execute(
            "SELECT token, batch_id, created, owner FROM batches WHERE is_open AND provider = ? AND model = ? "
            "ORDER BY created",
            (provider, model),
        )
        batches = []
        for token, batch_id, created, owner in rows:
            items = self._file.execute("SELECT key FROM batch_items WHERE token = ?", (token,))
            keys = tuple(key for (key,) in items)
            batches.append(Batch(token, batch_id, keys, datetime.fromisoformat(created), owner))
        return batches

    def batch_ids(self) -> set[str]:
        """The provider's ids of all recorded batches."""
        rows = self._file.execute("SELECT batch_id FROM batches WHERE batch_id IS NOT NULL")
        return {batch_id for (batch_id,) in rows}

    def adopt(self, batch: Batch) -> bool:
        """Make this process the owner of a batch without an id; False if its owner has changed."""
        statement = "UPDATE batches SET owner = ? WHERE token = ? AND owner = ? AND is_open AND batch_id IS NULL"
        with self._file.connected() as connection:
            return connection.execute(statement, (_this_process(), batch.token, batch.owner)).rowcount == 1

    def set_id(self, token: str, batch_id: str) -> None:
        """Record the id that the provider gave."""
        self._file.execute("UPDATE batches SET batch_id = ? WHERE token = ?", (batch_id, token))

    def close(self, token: str, responses: Iterable[Response] = ()) -> None:
        """Close a batch and cache its responses, in one transaction."""
        with self._file.transaction() as connection:
            for response in responses:
                statement = "SELECT request, provider, model FROM batch_items JOIN batches USING (token) "
                statement += "WHERE token = ? AND key = ?"
                if item := connection.execute(statement, (token, response.key)).fetchone():
                    connection.execute(INSERT, response_row(response, *item))
            connection.execute("UPDATE batches SET is_open = 0 WHERE token = ?", (token,))
            connection.execute("DELETE FROM batch_items WHERE token = ?", (token,))
