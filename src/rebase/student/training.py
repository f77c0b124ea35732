"""QLoRA fine-tuning of the student (docs/method.md section 7), resumable."""

import hashlib
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.files import replacing_folder
from rebase.parameters import TrainParameters
from rebase.records import Adapter
from rebase.student.handle import Student, quiet_libraries
from rebase.student.preflight import Shape, check_examples, measure_shape
from rebase.student.tokenization import Encoded, encode
from rebase.student.trainer import WHOLE, last_checkpoint, make_trainer

logger = logging.getLogger(__name__)

# Bytes of a trained number in a checkpoint (weight and two moments), and checkpoints that may lie side by side.
_SAVED_BYTES, _CHECKPOINTS = 12, 3


def train_adapter(
    student: Student, training_set: pd.DataFrame, parameters: TrainParameters
) -> tuple[Adapter, pd.DataFrame, dict[str, Any]]:
    """Train a LoRA adapter on ``training_set`` (columns ``prompt``, ``completion``), the loss on completions alone.

    Returns the adapter (a folder under ``student.workdir``), the log (``step``, ``epoch``, ``loss``,
    ``learning_rate``, ``token_accuracy``, ``gradient_norm``, ``validation_loss``: one line a step) and the counts for
    the summary. Killed and started again with the same data and settings, it goes on from its last whole checkpoint
    and ends with the same adapter; finished before, it gives what it gave then. Raises RebaseError where nothing can
    be learned from the examples, the loss is not a number, or memory or disk are short.
    """
    began = time.monotonic()
    run = student.workdir / _fingerprint(student, training_set, parameters)
    if (run / "result").exists():
        logger.info("train: this run was finished before; its adapter is taken from %s", run)
        return _read_result(run / "result", student)
    encoded = encode(student, training_set, parameters)
    check_examples(encoded, student.tokenizer(), parameters)
    checkpoint = _checkpoint_to_resume(run)
    shape = measure_shape(student, parameters)
    with replacing_folder(run / "result") as result:
        log, trainable = _train(student, encoded, parameters, shape, run, result / "adapter")
        counts = {
            "in": len(training_set),
            "kept": len(encoded.train),
            "rejected": encoded.rejected,
            "steps": int(log["step"].max()),
            "trainable_parameters": trainable,
            "first_loss": float(log["loss"].iloc[0]),
            "last_loss": float(log["loss"].iloc[-1]),
            **({"validation_loss": float(log["validation_loss"].dropna().iloc[-1])} if encoded.validation else {}),
            "resumed_from_step": int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0,
            "seconds": round(time.monotonic() - began, 1),
        }
        log.to_parquet(result / "log.parquet")
        (result / "counts.json").write_text(json.dumps(counts), encoding="utf-8")
    for left in [*run.glob("checkpoint-*"), run / "best"]:
        shutil.rmtree(left, ignore_errors=True)
    return _read_result(run / "result", student)


def _train(
    student: Student, encoded: Encoded, parameters: TrainParameters, shape: Shape, run: Path, target: Path
) -> tuple[pd.DataFrame, int]:
    """Train and write the adapter to ``target``; the log, and how many numbers were trained."""
    checkpoint = last_checkpoint(run)
    with quiet_libraries(), student.open(four_bit=parameters.four_bit) as (model, tokenizer):
        trainer = make_trainer(
            model, tokenizer, encoded, parameters, shape, run, lambda best: _save_adapter(best, student, run / "best")
        )
        trainable, _ = trainer.model.get_nb_trainable_parameters()
        _check_disk(run, trainable)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if (run / "best").exists():
                shutil.copytree(run / "best", target)
            else:
                _save_adapter(trainer.model, student, target)
        except Exception as error:
            if not _cannot_write(error):
                raise
            raise RebaseError(
                f"train: a file under {run} cannot be written: {error}\nFree disk space there, or move `data` in "
                "globals.yml; started again, training goes on from its last whole checkpoint."
            ) from error
        finally:
            log_history = trainer.state.log_history
            # The trainer and the model refer to each other: without this the weights outlive the block.
            trainer.model = trainer.model_wrapped = None
            del model, trainer
    return _log_frame(log_history, parameters.epochs), trainable


def _fingerprint(student: Student, training_set: pd.DataFrame, parameters: TrainParameters) -> str:
    """What the trained weights depend on, as a folder name.

    How often checkpoints are written is no part of it, nor what was taken out before the examples were formatted.
    """
    content = [
        *student.identity(),
        training_set[["prompt", "completion"]].to_numpy().tolist(),
        parameters.model_dump(mode="json", exclude={"checkpoint_steps", "exclude"}),
    ]
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _checkpoint_to_resume(run: Path) -> Path | None:
    """The last whole checkpoint of a run that was cut short; half-written ones are removed."""
    for folder in run.glob("checkpoint-*"):
        if not (folder / WHOLE).exists():
            shutil.rmtree(folder)
    last = last_checkpoint(run)
    if last:
        logger.info("train: going on from %s", last.name)
    return last


def _check_disk(run: Path, trainable: int) -> None:
    """Raise RebaseError where the checkpoints do not fit the disk."""
    needed, free = _CHECKPOINTS * (_SAVED_BYTES * trainable + 2**24), shutil.disk_usage(run.parent).free
    if free < needed:
        raise RebaseError(
            f"train: {run.parent} has {free / 2**20:,.0f} MiB free, and checkpoints need {needed / 2**20:,.0f}. "
            "Free disk space there, or move `data` in globals.yml."
        )


def _cannot_write(error: Exception) -> bool:
    """Whether a file could not be written: torch and safetensors have errors of their own for that."""
    texts = ("PytorchStreamWriter", "inline_container", "No space left", "File too large")
    return isinstance(error, OSError) or any(text in str(error) for text in texts)


def _save_adapter(model: Any, student: Student, folder: Path) -> None:
    """Write config and safetensors, under the student's name instead of the path it was loaded from."""
    config = model.peft_config["default"]
    config.base_model_name_or_path = student.name
    config.revision = student.revision
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary, safe_serialization=True, save_embedding_layers=False)


def _read_result(folder: Path, student: Student) -> tuple[Adapter, pd.DataFrame, dict[str, Any]]:
    counts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    return Adapter(folder / "adapter", student.name), pd.read_parquet(folder / "log.parquet"), counts


def _log_frame(history: list[dict[str, Any]], epochs: float) -> pd.DataFrame:
    """The trainer's history as a table; its one epoch over the dataset stands for all ``epochs``."""
    evaluated = {entry["step"]: entry["validation_loss"] for entry in history if "validation_loss" in entry}
    return pd.DataFrame(
        {
            "step": entry["step"],
            "epoch": entry["epoch"] * epochs,
            "loss": entry["loss"],
            "learning_rate": entry["learning_rate"],
            "token_accuracy": entry.get("token_accuracy"),
            "gradient_norm": entry.get("grad_norm"),
            "validation_loss": evaluated.get(entry["step"], float("nan")),
        }
        for entry in history
        if "loss" in entry
    )
