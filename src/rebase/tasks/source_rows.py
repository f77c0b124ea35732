"""Raw rows for a task, from a file or from the hub."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rebase.datastore.sources import HubSource, all_rows, is_data_file, read_file
from rebase.errors import RebaseError
from rebase.records import Task


@dataclass(frozen=True)
class SourceRows:
    """Rows as their source has them.

    ``origin`` has ``dataset`` and, from the hub, ``config``, ``revision`` and ``license``. ``location`` is for error
    messages only: it may be a path of this machine.
    """

    rows: list[dict[str, Any]]
    location: str = ""
    origin: dict[str, str] = field(default_factory=dict)


def read_source_rows(
    task: Task, location: str, split: str, token: str | None, content: str, parameter: str
) -> SourceRows:
    """Read all rows of a file, or of a split of a hub dataset.

    The config is the one of the task's evaluation set where the dataset has it, else the dataset's first. ``content``
    and ``parameter`` name in errors what is read, and the parameter that gives another source.

    Raises:
        RebaseError: The file is missing or malformed, or the hub dataset cannot be read.

    """
    what = f"The {content} of task {task.name!r}"
    if is_data_file(Path(location).name):
        if not Path(location).exists():
            raise RebaseError(f"{what} is missing: there is no file {location}.")
        try:
            return SourceRows(read_file(Path(location)), location, {"dataset": Path(location).name})
        except Exception as error:  # Each format's reader raises errors of its own.
            raise RebaseError(f"{what} cannot be read from {location}: {error}\nCorrect the file.") from error
    if Path(location).exists():
        raise RebaseError(
            f"{what} cannot be read from {location}: it is a folder, or of another format. "
            "Give a JSONL, CSV or Parquet file."
        )
    spec = task.evaluation
    is_evaluation_source = location == spec.source
    try:
        # The revision belongs to the evaluation set; another dataset may have a config of the same name.
        source = HubSource(location, spec.revision if is_evaluation_source else None, token, split=split)
        config = spec.config if is_evaluation_source else None
        if not config:
            configs = source.configs()
            config = spec.config if spec.config in configs else configs[0]
        card = source.card()
        origin = {"dataset": location, "config": config, "revision": card.revision, "license": card.license}
        return SourceRows(all_rows(source.read(config, sys.maxsize)[1]), location, origin)
    except Exception as error:
        raise RebaseError(
            f"{what} cannot be read from the hub as {location!r}: {error}\n"
            f"Give a file instead: --params={parameter}=FILE."
        ) from error
