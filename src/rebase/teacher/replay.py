"""A teacher that only uses cached responses and needs neither network nor key."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebase.errors import RebaseError
from rebase.teacher.protocol import Failure, Request, Response, Session, Teacher
from rebase.teacher.settings import TeacherSettings, server_address


@dataclass(frozen=True)
class ReplayTeacher(Teacher, Session):
    """Stands in for the teacher ``provider``/``model`` whose responses are in the cache file at ``path``.

    ``address`` is its server, if that is not the provider's own.
    """

    provider: str
    model: str
    path: Path
    address: str = ""

    @classmethod
    def from_settings(cls, settings: TeacherSettings, *, cache_path: Path, **_: Any) -> "ReplayTeacher":
        """Create the teacher that ``settings.model`` names as PROVIDER/MODEL."""
        provider, slash, model = settings.model.partition("/")
        if not (provider and slash and model):
            raise RebaseError(
                f"teacher.model is {settings.model!r}. With teacher.provider replay, set it to PROVIDER/MODEL of the "
                "teacher whose responses are cached, such as anthropic/claude-haiku-5-5 (see `kedro responses list`)."
            )
        return cls(provider, model, cache_path, server_address(settings.base_url, settings.extra_body))

    def check(self) -> None:
        """Raise RebaseError if there is no cache."""
        if not self.path.exists():
            raise RebaseError(f"There are no cached responses to replay: {self.path} is missing. "
                              "Run `kedro responses import FILE` first.")  # fmt: skip

    @asynccontextmanager
    async def open(self) -> AsyncIterator["ReplayTeacher"]:
        """Open nothing."""
        yield self

    async def generate(self, request: Request) -> Response | Failure:
        """Fail: the response is not in the cache."""
        at = self.address and f" at {self.address}"
        return Failure(self.key(request), f"no cached response of {self.provider}/{self.model}{at}")
