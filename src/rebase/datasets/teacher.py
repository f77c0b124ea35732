"""The teacher's catalog entry: a cheap handle of a local or hosted model, behind the response cache."""

from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset

from rebase.datasets.inputs import Handle
from rebase.records import validated
from rebase.reporting.redaction import public
from rebase.teacher.budget import Budget, PriceTable
from rebase.teacher.cache_file import use_earlier_file
from rebase.teacher.cached import CachedTeacher, price_of
from rebase.teacher.registry import find_provider
from rebase.teacher.settings import TeacherSettings


class TeacherDataset(Handle, AbstractDataset[Any, CachedTeacher]):
    """Loads a ``CachedTeacher``: the same one in a whole run, with one budget and what the run learns of the server.

    Args:
        settings: The values of ``TeacherSettings``, as one mapping or as several, of which later ones override.
        filepath: The response cache.
        folder: Where weights from Python packages are converted to.
        prices: The price table.
        credentials: The API keys by provider.
        dtype: The number format of computation of a local teacher.
        metadata: For Kedro-Viz.

    """

    def __init__(
        self,
        settings: dict[str, Any] | list[dict[str, Any]],
        filepath: str,
        folder: str,
        prices: dict[str, Any],
        credentials: dict[str, Any] | None = None,
        dtype: str = "auto",
        metadata: dict[str, Any] | None = None,
    ) -> None:
        layers = [settings] if isinstance(settings, dict) else settings
        self._settings = {name: value for layer in layers for name, value in layer.items()}
        self._filepath = Path(filepath)
        self._folder = Path(folder)
        self._prices = prices
        self._credentials = credentials or {}
        self._dtype = dtype
        self._teacher: CachedTeacher | None = None
        self.metadata = metadata

    @property
    def filepath(self) -> Path:
        """The response cache; a file of an earlier version is renamed."""
        use_earlier_file(self._filepath)
        return self._filepath

    def load(self) -> CachedTeacher:
        if self._teacher is None:
            self._teacher = self._make()
        return self._teacher

    def _make(self) -> CachedTeacher:
        settings = validated(TeacherSettings, self._settings, "teacher (globals.yml or --params) is wrong:")
        teacher = find_provider(settings.provider).from_settings(
            settings,
            key=self._credentials.get(settings.provider),
            cache_path=self.filepath,
            model_folder=self._folder,
            dtype=self._dtype,
        )
        prices = validated(PriceTable, self._prices, "globals.yml, prices: not a valid table.")
        budget = Budget(settings, price_of(teacher, prices))
        return CachedTeacher(teacher, self._filepath, budget, prices, settings.batch)

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), **public(self._settings)}  # part of Kedro's messages
