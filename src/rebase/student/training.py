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
from rebase.student.checkpoints import check_disk, checkpoint_to_resume, is_write_error, step_of
from rebase.student.handle import Student, quiet_libraries
from rebase.student.preflight import check_examples, measure_shape
from rebase.student.tokenization import TokenizedExamples, tokenize

logger = logging.getLogger(__name__)


def train_adapter(
    student: Student, training_set: pd.DataFrame, parameters: TrainParameters
) -> tuple[Adapter, pd.DataFrame, dict[str, Any]]:
    """Train a LoRA adapter on ``training_set`` (columns ``prompt``, ``completion``), the loss on completions alone.

    Returns the adapter (a folder under ``student.workdir``), the log (one row per step: ``step``, ``epoch``, ``loss``,
    ``learning_rate``, ``token_accuracy``, ``gradient_norm``, ``validation_loss``) and counts for the summary. An
    interrupted run with the same data and settings resumes from its last complete checkpoint and ends with the same
    adapter; a finished run returns its results. Raises RebaseError if nothing can be learned from the examples, the
    loss is not finite, or memory or disk space are short.
    """
    started = time.monotonic()
    run = student.workdir / _fingerprint(student, training_set, parameters)
    if (run / "result").exists():
        logger.info("train: this run was finished before; its adapter is in %s", run)
        return _read_result(run / "result", student)
    tokenized = tokenize(student, training_set, parameters)
    check_examples(tokenized, student.tokenizer(), parameters)
    checkpoint = checkpoint_to_resume(run)
    with replacing_folder(run / "result") as result:
        log, trainable = _train(student, tokenized, parameters, run, checkpoint, result / "adapter")
        validation_losses = log["validation_loss"].dropna()
        counts = {
            "in": len(training_set),
            "kept": len(tokenized.train),
            "rejected": tokenized.rejected,
            "steps": int(log["step"].max()),
            "trainable_parameters": trainable,
            "first_loss": float(log["loss"].iloc[0]),
            "last_loss": float(log["loss"].iloc[-1]),
            **({"validation_loss": float(validation_losses.iloc[-1])} if tokenized.validation else {}),
            "resumed_from_step": step_of(checkpoint) if checkpoint else 0,
            "seconds": round(time.monotonic() - started, 1),
        }
        log.to_parquet(result / "log.parquet")
        (result / "counts.json").write_text(json.dumps(counts), encoding="utf-8")
    for folder in [*run.glob("checkpoint-*"), run / "best"]:
        shutil.rmtree(folder, ignore_errors=True)
    return _read_result(run / "result", student)


def _train(
    student: Student, tokenized: TokenizedExamples, parameters: TrainParameters, run: Path, checkpoint: Path | None,
    target: Path,
) -> tuple[pd.DataFrame, int]:  # fmt: skip
    """Train, write the adapter to ``target``, and return the log and the count of trained numbers."""
    from rebase.student.trainer import make_trainer

    shape = measure_shape(student, parameters)
    with quiet_libraries(), student.open(four_bit=parameters.four_bit) as (model, tokenizer):
        trainer: Any = make_trainer(
            model, tokenizer, tokenized, parameters, shape, run, lambda best: _save_adapter(best, student, run / "best")
        )
        trainable, _ = trainer.model.get_nb_trainable_parameters()
        check_disk(run, trainable)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if (run / "best").exists():
                shutil.copytree(run / "best", target)
            else:
                _save_adapter(trainer.model, student, target)
        except Exception as error:
            if not is_write_error(error):
                raise
            raise RebaseError(
                f"train: a file under {run} cannot be written: {error}\nFree disk space there, or move `data` in "
                "globals.yml, and run again: training resumes from its last complete checkpoint."
            ) from error
        finally:
            history = trainer.state.log_history
            # The trainer and the model refer to each other: without this the weights stay in memory.
            trainer.model = trainer.model_wrapped = None
            del model, trainer
    return _log_table(history, parameters.epochs), trainable


def _fingerprint(student: Student, training_set: pd.DataFrame, parameters: TrainParameters) -> str:
    """What the trained weights depend on, as a folder name.

    Neither the frequency of checkpoints nor what was excluded before formatting is a part of it.
    """
    content = [
        *student.identity(),
        training_set[["prompt", "completion"]].to_numpy().tolist(),
        parameters.model_dump(mode="json", exclude={"checkpoint_steps", "exclude"}),
    ]
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _save_adapter(model: Any, student: Student, folder: Path) -> None:
    """Write config and safetensors, with the student's name instead of the path it was loaded from."""
    config = model.peft_config["default"]
    config.base_model_name_or_path = student.name
    config.revision = student.revision
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary, safe_serialization=True, save_embedding_layers=False)


def _read_result(folder: Path, student: Student) -> tuple[Adapter, pd.DataFrame, dict[str, Any]]:
    counts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    return Adapter(folder / "adapter", student.name), pd.read_parquet(folder / "log.parquet"), counts


def _log_table(history: list[dict[str, Any]], epochs: float) -> pd.DataFrame:
    """The trainer's history as a table; the trainer's one epoch stands for all ``epochs``."""
    validation_losses = {entry["step"]: entry["validation_loss"] for entry in history if "validation_loss" in entry}
    return pd.DataFrame(
        {
            "step": entry["step"],
            "epoch": entry["epoch"] * epochs,
            "loss": entry["loss"],
            "learning_rate": entry["learning_rate"],
            "token_accuracy": entry.get("token_accuracy"),
            "gradient_norm": entry.get("grad_norm"),
            "validation_loss": validation_losses.get(entry["step"], float("nan")),
        }
        for entry in history
        if "loss" in entry
    )
