"""The encoder's catalog entry: a cheap handle."""

from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset

from rebase.datasets.inputs import Handle
from rebase.datastore.encoder import Encoder


class EncoderDataset(Handle, AbstractDataset[Any, Encoder]):
    """Loads an ``Encoder`` handle, which reads the weights when it is opened."""

    def __init__(
        self,
        model: str,
        folder: str,
        revision: str | None = None,
        dtype: str = "auto",
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._settings: dict[str, Any] = {"model": model, "revision": revision, "dtype": dtype}
        self._folder = Path(folder)
        self.metadata = metadata

    def load(self) -> Encoder:
        return Encoder(folder=self._folder, **self._settings)

    def _describe(self) -> dict[str, Any]:
        return self._settings
