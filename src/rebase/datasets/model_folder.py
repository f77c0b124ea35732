"""A complete model as a folder."""

from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset

from rebase.files import replacing_folder
from rebase.serving.export import write_gguf


class ModelFolderDataset(AbstractDataset[tuple[Any, Any, dict[str, str]], Path]):
    """Saves model and tokenizer as safetensors, completely or not at all; loads the folder's path.

    The given files (text by name) are added, and a GGUF file if its converter is installed.
    """

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath = Path(filepath)
        self.metadata = metadata

    def save(self, data: tuple[Any, Any, dict[str, str]]) -> None:
        model, tokenizer, files = data
        with replacing_folder(self._filepath) as temporary:
            model.save_pretrained(temporary, safe_serialization=True)
            tokenizer.save_pretrained(temporary)
            for name, text in files.items():
                (temporary / name).write_text(text, encoding="utf-8")
            write_gguf(temporary)

    def load(self) -> Path:
        return self._filepath

    def _exists(self) -> bool:
        return (self._filepath / "config.json").is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
