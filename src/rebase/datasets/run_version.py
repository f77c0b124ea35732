"""The version of the run that is going on."""

from typing import Any

from kedro.io import AbstractDataset, Version

from rebase.datasets.inputs import ReadOnly


class RunVersionDataset(ReadOnly, AbstractDataset[Any, str]):
    """Load the version under which this run saves its outputs: the time when it started; empty outside a run."""

    versioned = True

    def __init__(self, version: Version | None = None, metadata: dict[str, Any] | None = None) -> None:
        self._version, self.metadata = version, metadata

    def load(self) -> str:
        return (self._version and self._version.save) or ""

    def _describe(self) -> dict[str, Any]:
        return {"version": self._version}
