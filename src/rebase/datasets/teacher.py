"""The teacher's catalog entry: a cheap handle of a local or hosted model, behind the store of responses."""

from pathlib import Path
from typing import Any, Literal

from kedro.io import AbstractDataset
from pydantic import Field, ValidationError

from rebase.datasets.inputs import Handle
from rebase.errors import RebaseError
from rebase.records import explain_validation
from rebase.reporting.redaction import public
from rebase.teacher.anthropic import AnthropicTeacher
from rebase.teacher.api import Limits
from rebase.teacher.budget import Budget, BudgetSettings, PriceTable
from rebase.teacher.cached import CachedTeacher, price_of
from rebase.teacher.local import LocalTeacher
from rebase.teacher.openai import OpenAITeacher
from rebase.teacher.protocol import Teacher
from rebase.teacher.replay import ReplayTeacher

_HOSTED = {teacher.provider: teacher for teacher in (AnthropicTeacher, OpenAITeacher)}


class TeacherSettings(BudgetSettings):
    """Which teacher, how it is asked, and what it may cost: the group ``teacher`` of globals.yml.

    ``provider`` is ``local`` (a packaged model, a folder or a hub id; ``revision`` is for it), ``anthropic`` or
    ``openai`` (``base_url`` is for these), or ``replay`` (``model`` is then PROVIDER/MODEL of stored responses).
    ``batch`` asks a hosted teacher by batches. Limits are a minute; null goes by the headers of the responses.
    """

    provider: Literal["local", "anthropic", "openai", "replay"]
    model: str = Field(min_length=1)
    revision: str | None = None
    base_url: str | None = None
    batch: bool = False
    max_concurrency: int = Field(default=64, ge=1)
    requests_per_minute: float | None = Field(default=None, gt=0)
    input_tokens_per_minute: float | None = Field(default=None, gt=0)
    output_tokens_per_minute: float | None = Field(default=None, gt=0)
    timeout: float = Field(default=120.0, gt=0)

    @property
    def limits(self) -> Limits:
        """How much may be asked at once and a minute."""
        return Limits(
            self.max_concurrency,
            self.requests_per_minute,
            self.input_tokens_per_minute,
            self.output_tokens_per_minute,
            self.timeout,
        )


class TeacherDataset(Handle, AbstractDataset[Any, CachedTeacher]):
    """Loads a ``CachedTeacher``. All that are loaded from one entry, in one run, share one budget.

    ``settings`` are those of ``TeacherSettings``. ``filepath`` is the store of responses, ``folder`` where packaged
    weights are converted to. ``prices`` is the table of prices, ``credentials`` give each provider's key by its name,
    ``dtype`` is the number format in which a local one computes.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        filepath: str,
        folder: str,
        prices: dict[str, Any],
        credentials: dict[str, Any] | None = None,
        dtype: str = "auto",
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._settings = settings
        self._filepath = Path(filepath)
        self._folder = Path(folder)
        self._prices = prices
        self._credentials = credentials or {}
        self._dtype = dtype
        self._budget: Budget | None = None
        self.metadata = metadata

    @property
    def filepath(self) -> Path:
        """The store of responses."""
        return self._filepath

    def load(self) -> CachedTeacher:
        try:
            settings = TeacherSettings.model_validate(self._settings)
        except ValidationError as error:
            raise RebaseError(
                f"teacher (globals.yml, or --params): a wrong setting.\n{explain_validation(error)}"
            ) from None
        teacher, prices = self._teacher(settings), PriceTable.parse(self._prices)
        if self._budget is None:
            self._budget = Budget(settings, price_of(teacher, prices))
        return CachedTeacher(teacher, self._filepath, self._budget, prices, settings.batch)

    def _teacher(self, settings: TeacherSettings) -> Teacher:
        if hosted := _HOSTED.get(settings.provider):
            key = self._credentials.get(settings.provider)
            return hosted(settings.model, key, settings.base_url, settings.limits)
        if settings.provider == "replay":
            return ReplayTeacher.of(settings.model, self._filepath)
        return LocalTeacher(settings.model, settings.revision, self._folder, self._dtype)

    def _describe(self) -> dict[str, Any]:
        # Kedro's messages repeat it.
        return {"filepath": str(self._filepath), **public(self._settings)}
