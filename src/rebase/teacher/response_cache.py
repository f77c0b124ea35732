"""The response cache: every response of a teacher, by its key, so that none is paid for twice."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rebase.errors import RebaseError
from rebase.teacher.batch_journal import BatchJournal
from rebase.teacher.cache_file import COLUMNS, INSERT, CacheFile, is_valid, response_row
from rebase.teacher.protocol import Request, Response

_SELECT = f"SELECT {', '.join(COLUMNS)} FROM responses WHERE key = ?"  # noqa: S608
_SELECT_PAGE = f"SELECT rowid, {', '.join(COLUMNS)} FROM responses WHERE rowid > ? ORDER BY rowid LIMIT 500"  # noqa: S608
#: How many of a teacher's latest prompts tell the tokens per character.
_COUNTED_PROMPTS = 200


class ResponseCache(CacheFile):
    """Responses by key in one SQLite file, and the journal of batches. Each ``put`` is a transaction."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.journal = BatchJournal(self)

    def get(self, key: str) -> Response | None:
        """Return the cached response, or None. Earlier versions cached empty ones too, which are of no use."""
        rows = self.execute(
            "SELECT key, text, finish, input_tokens, output_tokens, seconds, batch FROM responses WHERE key = ?", (key,)
        )
        if not rows:
            return None
        *values, batch = rows[0]
        response = replace(Response(*values), batch=bool(batch))
        if not response.is_empty:
            return response
        self.execute("DELETE FROM responses WHERE key = ?", (key,))
        return None

    def look_up(self, key: str) -> dict[str, Any] | None:
        """Return a response's row by column, with the request as JSON text, or None."""
        rows = self.execute(_SELECT, (key,))
        return dict(zip(COLUMNS, rows[0], strict=True)) if rows else None

    def put(self, request: Request, response: Response, provider: str, model: str, address: str = "") -> None:
        """Add a response; an existing one stays."""
        self.execute(INSERT, response_row(response, request.to_json(), provider, model, address))

    def tokens_per_character(self, provider: str, model: str) -> float | None:
        """Input tokens per character in this teacher's latest prompts; None if there are none."""
        rows = self.execute(
            "SELECT request, input_tokens FROM responses WHERE provider = ? AND model = ? ORDER BY rowid DESC LIMIT ?",
            (provider, model, _COUNTED_PROMPTS),
        )
        characters = sum(Request.from_json(request).characters for request, _ in rows)
        return sum(tokens for _, tokens in rows) / characters if characters else None

    def summary(self) -> list[tuple[str, str, int, int, int, str, str, str]]:
        """For each teacher: provider, model, responses, input tokens, output tokens, first and last time, address."""
        return self.execute(
            "SELECT provider, model, count(*), sum(input_tokens), sum(output_tokens), min(created), max(created), "
            "address FROM responses GROUP BY provider, model, address ORDER BY provider, model, address"
        )

    def export(self) -> Iterator[dict[str, Any]]:
        """Yield every response with its request, as ``load`` takes them."""
        last = 0
        while rows := self.execute(_SELECT_PAGE, (last,)):
            yield from (dict(zip(COLUMNS, row, strict=True)) for _, *row in rows)
            last = rows[-1][0]

    def load(self, lines: Iterable[dict[str, Any]]) -> tuple[int, int]:
        """Add exported responses; returns how many were new, and how many there were.

        Raises RebaseError, and adds none, if a line is not an exported response or has a wrong key.
        """
        new = total = 0
        with self.transaction() as connection:
            for total, line in enumerate(lines, start=1):
                try:
                    row = tuple(line[name] if name != "address" else line.get(name, "") for name in COLUMNS)
                    has_right_key = is_valid(row)
                    new += connection.execute(INSERT, row).rowcount if has_right_key else 0
                except (KeyError, TypeError, ValueError) as error:
                    raise RebaseError(
                        f"Line {total} is not an exported response: {type(error).__name__} {error}."
                    ) from None
                if not has_right_key:
                    raise RebaseError(f"Line {total}: the key is not that of the request. Export the responses again.")
        return new, total

    def prune(self, provider: str | None, model: str | None, before: str | None) -> int:
        """Delete the responses of a provider, of a model, or before a time (ISO 8601); returns their number."""
        conditions = {"provider = ?": provider, "model = ?": model, "created < ?": before}
        given = {clause: value for clause, value in conditions.items() if value is not None}
        statement = f"DELETE FROM responses WHERE {' AND '.join(given) or '1'}"  # noqa: S608
        with self.connected() as connection:
            return connection.execute(statement, tuple(given.values())).rowcount
