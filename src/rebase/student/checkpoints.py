"""Checkpoints of a training run: complete ones, and the disk space they need."""

import logging
import shutil
from pathlib import Path

from rebase.errors import RebaseError

logger = logging.getLogger(__name__)

#: Written into a checkpoint after everything else: one without it was interrupted and is not resumed from.
COMPLETE = "complete"

# Bytes of a trained number in a checkpoint (weight and two moments), and checkpoints on disk at the same time.
_SAVED_BYTES, _CHECKPOINTS = 12, 3


def last_checkpoint(run: Path) -> Path | None:
    """The last complete checkpoint in a run's folder."""
    complete = [folder for folder in run.glob("checkpoint-*") if (folder / COMPLETE).exists()]
    return max(complete, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The number of steps before the checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoint_to_resume(run: Path) -> Path | None:
    """The last complete checkpoint of an interrupted run; incomplete ones are removed."""
    for folder in run.glob("checkpoint-*"):
        if not (folder / COMPLETE).exists():
            shutil.rmtree(folder)
    last = last_checkpoint(run)
    if last:
        logger.info("train: resuming from %s", last.name)
    return last


def check_disk(run: Path, trainable: int) -> None:
    """Raise RebaseError if the checkpoints of this many trained weights do not fit on the disk."""
    needed, free = _CHECKPOINTS * (_SAVED_BYTES * trainable + 2**24), shutil.disk_usage(run.parent).free
    if free < needed:
        raise RebaseError(
            f"train: {run.parent} has {free / 2**20:,.0f} MiB free, and checkpoints need {needed / 2**20:,.0f}. "
            "Free disk space there, or move `data` in globals.yml."
        )


def is_write_error(error: Exception) -> bool:
    """Whether a file could not be written: torch and safetensors raise other errors than OSError."""
    texts = ("PytorchStreamWriter", "inline_container", "No space left", "File too large")
    return isinstance(error, OSError) or any(text in str(error) for text in texts)
