"""The teacher that says only what it once said: it answers from stored responses, without a network."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from rebase.errors import RebaseError
from rebase.teacher.protocol import Failure, Request, Response


@dataclass(frozen=True)
class ReplayTeacher:
    """Stands for the teacher ``provider``/``model`` whose responses lie in the store at ``path``: it asks nobody."""

    provider: str
    model: str
    path: Path
    concurrency: int = 64
    thinking_tokens: int = 0
    compute_dtype: None = None

    @classmethod
    def of(cls, name: str, path: Path) -> "ReplayTeacher":
        """The teacher named as PROVIDER/MODEL."""
        provider, slash, model = name.partition("/")
        if not (provider and slash and model):
            raise RebaseError(
                f"teacher.model is {name!r}: for teacher.provider replay it must be PROVIDER/MODEL of the teacher "
                "whose responses are stored, such as anthropic/claude-haiku-5-5. `kedro responses list` shows them."
            )
        return cls(provider, model, path)

    def check(self) -> None:
        """Raise RebaseError where there is no store to answer from."""
        if not self.path.exists():
            raise RebaseError(
                f"There are no stored responses to replay: {self.path} is missing (kedro responses import)."
            )

    @asynccontextmanager
    async def open(self) -> AsyncIterator["ReplayTeacher"]:
        """Nothing to open."""
        yield self

    async def generate(self, request: Request) -> Response | Failure:
        """What is not stored cannot be answered."""
        return Failure(request.key(self.provider, self.model), f"no stored response of {self.provider}/{self.model}")

    def stop(self) -> None:
        """Nothing is sent anyway."""
