"""The journal of batches: each is recorded before it is submitted, so that an interrupted run finds it again."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from filelock import FileLock

from rebase.teacher.cache_file import BATCH_COLUMNS, INSERT, CacheFile, insertion, response_row
from rebase.teacher.protocol import Request, Response


@dataclass(frozen=True)
class Batch:
    """A batch: our token, the provider's id once it is known, the keys of its items, and the time of its submission."""

    token: str
    batch_id: str | None
    keys: tuple[str, ...]
    created: datetime


class BatchJournal:
    """The batches in the file of the response cache.

    A process holds ``submission`` while it submits a batch, and the lock ends with the process: for the holder of the
    lock, an open batch without an id is one whose submission was interrupted.
    """

    def __init__(self, file: CacheFile) -> None:
        self._file = file
        self.submission = FileLock(f"{file.path}.submission.lock")

    def add(self, batch: Batch, requests: Iterable[Request], provider: str, model: str, address: str = "") -> bool:
        """Record a batch before it is submitted, with its requests in the order of its keys.

        Returns False and records nothing if another process was faster: one of the responses is cached, or is in
        another open batch.
        """
        items = [(batch.token, key, request.to_json()) for key, request in zip(batch.keys, requests, strict=True)]
        is_taken = "SELECT 1 FROM responses WHERE key = ? UNION ALL SELECT 1 FROM batch_items WHERE key = ? LIMIT 1"
        row = (batch.token, batch.batch_id, provider, model, batch.created.isoformat(), "", 1, address)
        with self._file.transaction() as connection:
            if any(connection.execute(is_taken, (key, key)).fetchone() for key in batch.keys):
                return False
            connection.execute(insertion("batches", BATCH_COLUMNS), row)
            connection.executemany("INSERT INTO batch_items VALUES (?, ?, ?)", items)
        return True

    def open_batches(self, provider: str, model: str, address: str = "") -> list[Batch]:
        """The teacher's batches whose responses have not been collected, oldest first."""
        rows = self._file.execute(
            "SELECT token, batch_id, created FROM batches WHERE is_open AND provider = ? AND model = ? AND address = ? "
            "ORDER BY created",
            (provider, model, address),
        )
        batches = []
        for token, batch_id, created in rows:
            items = self._file.execute("SELECT key FROM batch_items WHERE token = ?", (token,))
            batches.append(Batch(token, batch_id, tuple(key for (key,) in items), datetime.fromisoformat(created)))
        return batches

    def batch_ids(self) -> set[str]:
        """The provider's ids of all recorded batches."""
        rows = self._file.execute("SELECT batch_id FROM batches WHERE batch_id IS NOT NULL")
        return {batch_id for (batch_id,) in rows}

    def set_id(self, token: str, batch_id: str) -> None:
        """Record the id that the provider gave."""
        self._file.execute("UPDATE batches SET batch_id = ? WHERE token = ?", (batch_id, token))

    def close(self, token: str, responses: Iterable[Response] = ()) -> None:
        """Close a batch and cache its responses, in one transaction."""
        find = "SELECT request, provider, model, address FROM batch_items JOIN batches USING (token)"
        with self._file.transaction() as connection:
            for response in responses:
                item = connection.execute(f"{find} WHERE token = ? AND key = ?", (token, response.key)).fetchone()
                if item:
                    connection.execute(INSERT, response_row(response, *item))
            connection.execute("UPDATE batches SET is_open = 0 WHERE token = ?", (token,))
            connection.execute("DELETE FROM batch_items WHERE token = ?", (token,))
