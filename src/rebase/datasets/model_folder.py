"""A complete model as a folder."""

from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset

from rebase.files import replacing_folder


class ModelFolderDataset(AbstractDataset[tuple[Any, Any], Path]):
    """Saves model and tokenizer as safetensors, completely or not at all; loads the folder's path."""

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath = Path(filepath)
        self.metadata = metadata

    def save(self, data: tuple[Any, Any]) -> None:
        model, tokenizer = data
        with replacing_folder(self._filepath) as temporary:
            model.save_pretrained(temporary, safe_serialization=True)
            tokenizer.save_pretrained(temporary)

    def load(self) -> Path:
        return self._filepath

    def _exists(self) -> bool:
        return (self._filepath / "config.json").is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
