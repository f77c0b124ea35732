"""The teacher's catalog entry: a cheap handle of a local or hosted model, behind the store of replies."""

from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset

from rebase.datasets.inputs import ReadOnly
from rebase.errors import RebaseError
from rebase.teacher.anthropic import AnthropicTeacher
from rebase.teacher.local import LocalTeacher
from rebase.teacher.openai import OpenAITeacher
from rebase.teacher.protocol import Teacher
from rebase.teacher.store import StoredTeacher

_HOSTED = {teacher.provider: teacher for teacher in (AnthropicTeacher, OpenAITeacher)}


class TeacherDataset(ReadOnly, AbstractDataset[Any, StoredTeacher]):
    """Loads a ``StoredTeacher``.

    ``provider`` is ``local`` (a packaged model, a folder or a hub id; ``revision`` and ``folder`` are for it),
    ``anthropic`` or ``openai`` (``base_url`` is for these). ``filepath`` is the store of replies.
    ``credentials`` give each provider's key by its name.
    """

    def __init__(
        self,
        provider: str,
        model: str,
        filepath: str,
        folder: str,
        revision: str | None = None,
        base_url: str | None = None,
        credentials: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._provider = provider
        self._model = model
        self._filepath = Path(filepath)
        self._folder = Path(folder)
        self._revision = revision
        self._base_url = base_url
        self._credentials = credentials or {}
        self.metadata = metadata

    def load(self) -> StoredTeacher:
        return StoredTeacher(self._teacher(), self._filepath)

    def _teacher(self) -> Teacher:
        if self._provider == LocalTeacher.provider:
            return LocalTeacher(self._model, self._revision, self._folder)
        if hosted := _HOSTED.get(self._provider):
            return hosted(self._model, self._credentials.get(self._provider), self._base_url)
        known = ", ".join([LocalTeacher.provider, *_HOSTED])
        raise RebaseError(f"There is no teacher provider {self._provider!r}: known are {known} (globals.yml).")

    def _describe(self) -> dict[str, Any]:
        return {
            "provider": self._provider,
            "model": self._model,
            "revision": self._revision,
            "base_url": self._base_url,
            "filepath": str(self._filepath),
        }
