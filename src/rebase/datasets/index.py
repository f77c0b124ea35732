"""The index and the forest on disk: memory-mapped, with what they were made from beside them."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from kedro.io import AbstractDataset, DatasetError

from rebase.files import replacing_folder
from rebase.search import Forest, VectorIndex

_METADATA = "metadata.json"


class VectorIndexDataset(AbstractDataset[VectorIndex, VectorIndex]):
    """A folder with one ``.npy`` file an array, memory-mapped on load, and ``metadata.json``."""

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._folder = Path(filepath)
        self.metadata = metadata

    def load(self) -> VectorIndex:
        content = json.loads((self._folder / _METADATA).read_text(encoding="utf-8"))
        arrays = {file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in self._folder.glob("*.npy")}
        return VectorIndex(**content, **arrays)

    def save(self, data: VectorIndex) -> None:
        content = {}
        with replacing_folder(self._folder) as folder:
            for part in fields(data):
                value = getattr(data, part.name)
                if isinstance(value, np.ndarray):
                    np.save(folder / f"{part.name}.npy", value, allow_pickle=False)
                else:
                    content[part.name] = value
            (folder / _METADATA).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    def _exists(self) -> bool:
        return (self._folder / _METADATA).exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._folder)}


class ForestDataset(AbstractDataset[Forest, Forest]):
    """A folder with Annoy's own file, memory-mapped on load, and ``metadata.json``."""

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._folder = Path(filepath)
        self.metadata = metadata

    def load(self) -> Forest:
        from annoy import AnnoyIndex

        content = json.loads((self._folder / _METADATA).read_text(encoding="utf-8"))
        annoy = None
        if content["trees"]:
            annoy = AnnoyIndex(content["dimension"], "angular")
            annoy.load(str(self._folder / "forest.ann"))
            if annoy.get_n_items() != content["count"]:
                raise DatasetError(f"{self._folder}: the forest is damaged. Build it again: --pipeline=index.")
        return Forest(annoy, **content)

    def save(self, data: Forest) -> None:
        content = {part.name: getattr(data, part.name) for part in fields(data) if part.name != "annoy"}
        with replacing_folder(self._folder) as folder:
            if data.annoy is not None:
                data.annoy.save(str(folder / "forest.ann"))
            (folder / _METADATA).write_text(json.dumps(content), encoding="utf-8")

    def _exists(self) -> bool:
        return (self._folder / _METADATA).exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._folder)}
