"""The encoder's catalog entry: a cheap handle."""

from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset

from rebase.datasets.inputs import Handle
from rebase.encoder import Encoder


class EncoderDataset(Handle, AbstractDataset[Any, Encoder]):
    """Loads an ``Encoder`` handle; weights are read when it is opened."""

    def __init__(
        self, model: str, folder: str, revision: str | None = None, metadata: dict[str, Any] | None = None
    ) -> None:
        self._encoder = Encoder(model, revision, Path(folder))
        self.metadata = metadata

    def load(self) -> Encoder:
        return self._encoder

    def _describe(self) -> dict[str, Any]:
        return {"model": self._encoder.model, "revision": self._encoder.revision}
