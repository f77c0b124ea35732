"""A trained adapter as a versioned folder."""

import json
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from kedro.io import AbstractVersionedDataset, Version

from rebase.datasets.checked import FileError
from rebase.datasets.previews import JSONPreview
from rebase.files import replacing_folder, write_checksums
from rebase.records import Adapter, Untrained
from rebase.student.adapters import CONFIG, describe_damaged_adapter

_UNTRAINED = "untrained.json"


class AdapterDataset(AbstractVersionedDataset[Adapter | Untrained, Adapter | Untrained]):
    """Saves a copy of the adapter's folder, completely or not at all; loads its location.

    For an adapter that could not be trained, the folder has the reason.
    """

    def __init__(self, filepath: str, version: Version | None = None, metadata: dict[str, Any] | None = None) -> None:
        super().__init__(PurePosixPath(filepath), version, exists_function=_is_adapter)
        self.metadata = metadata

    def save(self, data: Adapter | Untrained) -> None:
        with replacing_folder(Path(self._get_save_path())) as temporary:
            if isinstance(data, Untrained):
                (temporary / _UNTRAINED).write_text(json.dumps({"reason": data.reason}), encoding="utf-8")
            else:
                shutil.copytree(data.folder, temporary, dirs_exist_ok=True)
            write_checksums(temporary)

    def load(self) -> Adapter | Untrained:
        """Load the adapter. Raises FileError if it is missing or damaged."""
        if problem := self.problem():
            raise FileError(problem)
        folder = Path(self._get_load_path())
        try:
            if (folder / _UNTRAINED).exists():
                return Untrained(json.loads((folder / _UNTRAINED).read_text(encoding="utf-8"))["reason"])
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            return Adapter(folder, config["base_model_name_or_path"])
        except (OSError, ValueError, KeyError) as error:
            raise FileError(f"There is no adapter in {folder}: {error}. Run the train pipeline.") from error

    def problem(self, version: str | None = None) -> str:
        """What is wrong with the adapter, or with a ``version`` of it, and what to do; empty if nothing is known."""
        folder = self._filepath / version / self._filepath.name if version else self._get_load_path()
        return describe_damaged_adapter(Path(folder))

    def preview(self) -> JSONPreview:
        """The adapter's configuration for kedro-viz."""
        loaded = self.load()
        if isinstance(loaded, Untrained):
            return JSONPreview(json.dumps({"untrained": loaded.reason}))
        return JSONPreview((loaded.folder / CONFIG).read_text(encoding="utf-8"))

    def _exists(self) -> bool:
        return _is_adapter(str(self._get_load_path()))

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "version": self._version}


def _is_adapter(folder: str) -> bool:
    return any((Path(folder) / name).is_file() for name in (CONFIG, _UNTRAINED))
