"""QLoRA fine-tuning of the student (docs/method.md section 7), resumable."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.files import damaged_files, replacing_folder, write_checksums
from rebase.parameters import ChosenTraining, TrainParameters
from rebase.records import TRAINING_LOG_COLUMNS, Adapter, Task, summarize_stage
from rebase.student.adapters import (
    CARD,
    describe_damaged_adapter,
    render_card,
    save_adapter,
    write_origin,
    write_record,
)
from rebase.student.formatting import Target, prompt_template
from rebase.student.handle import Student, quiet_libraries
from rebase.student.hyperparameters import DivergedError, find_fault
from rebase.student.preflight import CHOSEN, check_examples, choose_settings, free_memory, measure_shape
from rebase.student.tokenization import TokenizedExamples, tokenize
from rebase.weights import resolve_dtype

logger = logging.getLogger(__name__)

#: Changes when results get other content, so that older ones are not read.
_FORMAT = 3
#: Written into a checkpoint after everything else, with the seconds of training until then: one without it was
#: interrupted and is not resumed from.
COMPLETE = "complete"
#: Written into the folder of a run whose loss was not finite, with its seconds.
_DIVERGED = "diverged"

# Bytes of a trained number in a checkpoint (weight and two moments), and checkpoints on disk at the same time.
_SAVED_BYTES, _CHECKPOINTS = 12, 3
# Parts of the messages of torch and safetensors for a file that cannot be written; they raise no OSError.
_WRITE_ERRORS = ("PytorchStreamWriter", "inline_container", "No space left", "File too large")


def train_expert(
    task: Task,
    training_set: pd.DataFrame,
    examples: pd.DataFrame,
    excluded: Mapping[str, int],
    student: Student,
    preflight: Mapping[str, Any],
    parameters: TrainParameters,
    target: Target,
) -> tuple[Adapter, pd.DataFrame, dict[str, Any]]:
    """Train an adapter and write its card. Returns the adapter, the training log and the stage's summary.

    ``training_set`` comes from ``format_examples`` and ``preflight`` from ``inspect_training``; ``examples`` is what
    was formatted, and ``excluded`` counts the examples that were excluded before.
    """
    adapter, log, counts = train_adapter(student, training_set, parameters)
    del counts["in"]  # the summary counts the excluded examples too
    counts["rejected"] = {**counts["rejected"], **excluded}
    chosen = {name: counts[name] for name in (*CHOSEN, "optimizer") if name in counts}
    settings = TrainParameters.model_validate(parameters.model_dump() | chosen | {"target": target})
    # It replaces the card that peft writes.
    prompt = prompt_template(student.tokenizer(), task)
    card = render_card(task, student, prompt, examples, settings, counts)
    (adapter.folder / CARD).write_text(card, encoding="utf-8")
    write_origin(adapter, task, examples)
    write_record(adapter, task, student, prompt)
    summary = summarize_stage(
        "train",
        **counts,
        **{name: preflight[name] for name in ("tokens", "tokens_with_loss", "padding_share")},
        base_model=student.name,
        dtype=resolve_dtype(student.dtype),
        target=target,
    )
    return adapter, log, summary


def train_adapter(
    student: Student, training_set: pd.DataFrame, parameters: TrainParameters
) -> tuple[Adapter, pd.DataFrame, dict[str, Any]]:
    """Train a LoRA adapter on ``training_set`` (columns ``prompt``, ``completion``), the loss on completions alone.

    Returns the adapter (a folder under ``student.workdir``), the log (``TRAINING_LOG_COLUMNS``) and counts for the
    summary, with the settings of ``choose_settings`` and what the validation losses say against the learning rate
    (``fault``). An interrupted run with the same data and settings resumes from its last complete checkpoint and ends
    with the same adapter; a finished run returns its results. Raises RebaseError if nothing can be learned from the
    examples, the loss is not finite, or memory or disk space are short.

    If the loss speaks against a learning rate of ``auto``, training is repeated once at half of it, and the adapter
    with the lower validation loss is returned. The seconds are those of both runs.
    """
    tokenized = tokenize(student, training_set, parameters)
    check_examples(tokenized, student.tokenizer(), parameters)
    settings = choose_settings(parameters, tokenized, measure_shape(student, parameters), free_memory())
    train = partial(_train_once, student, training_set, tokenized)
    if parameters.learning_rate != "auto":
        run = train(settings)
        if fault := run[2]["fault"]:
            logger.warning(
                "train: at a learning rate of %g %s. Lower train.learning_rate, or set it to auto",
                settings.learning_rate, fault,
            )  # fmt: skip
        return run
    runs: list[tuple[Adapter, pd.DataFrame, dict[str, Any]]] = []
    seconds = 0.0
    for factor in (1, 0.5):
        chosen = settings.model_copy(update={"learning_rate": factor * settings.learning_rate})
        diverged = student.workdir / _fingerprint(student, training_set, chosen) / _DIVERGED
        started = time.monotonic()
        try:
            if not diverged.exists():
                runs.append(train(chosen))
        except DivergedError:
            if factor < 1 and not runs:
                raise
            diverged.write_text(f"{time.monotonic() - started:.1f}", encoding="utf-8")
        if diverged.exists():
            fault = "the loss was not finite"
            seconds += float(diverged.read_text(encoding="utf-8") or 0)
        else:
            fault = runs[-1][2]["fault"]
            seconds += runs[-1][2]["seconds"]
        if not fault:
            break
        consequence = "it is halved once" if factor == 1 else "the adapter with the lowest validation loss is used"
        logger.warning("train: at a learning rate of %g %s; %s", chosen.learning_rate, fault, consequence)
    adapter, log, counts = min(runs, key=lambda run: run[2].get("validation_loss", 0.0))
    return adapter, log, counts | {"seconds": round(seconds, 1)}


def _train_once(
    student: Student, training_set: pd.DataFrame, tokenized: TokenizedExamples, parameters: ChosenTraining
) -> tuple[Adapter, pd.DataFrame, dict[str, Any]]:
    """Train at one learning rate."""
    started = time.monotonic()
    run = student.workdir / _fingerprint(student, training_set, parameters)
    if (run / "result").exists():
        try:
            earlier = _read_result(run / "result", student)
        except (OSError, ValueError) as error:
            logger.warning("train: the result in %s is damaged, so it is trained again: %s", run / "result", error)
        else:
            logger.info("train: this run was finished before; its adapter is in %s", run)
            return earlier
    checkpoint = last_checkpoint(run)
    if checkpoint:
        logger.info("train: resuming from %s", checkpoint.name)
        started -= float((checkpoint / COMPLETE).read_text(encoding="utf-8") or 0)  # earlier versions wrote nothing
    with replacing_folder(run / "result") as result:
        log, facts = _train(student, tokenized, parameters, run, checkpoint, result / "adapter", started)
        steps = log[log["step"] > 0]
        initial, *losses = log["validation_loss"].dropna() if tokenized.validation else [0.0]
        counts = {
            "in": len(training_set),
            "kept": len(tokenized.train),
            "rejected": tokenized.rejected,
            "steps": int(steps["step"].max()),
            **facts,
            **parameters.model_dump(mode="json", include=CHOSEN),
            "fault": find_fault(initial, losses) if losses else None,
            "first_loss": float(steps["loss"].iloc[0]),
            "last_loss": float(steps["loss"].iloc[-1]),
            **({"validation_loss": min(losses) if parameters.keep == "best" else losses[-1]} if losses else {}),
            "resumed_from_step": _step(checkpoint) if checkpoint else 0,
            "seconds": round(time.monotonic() - started, 1),
        }
        steps.to_parquet(result / "log.parquet")
        (result / "counts.json").write_text(json.dumps(counts), encoding="utf-8")
        write_checksums(result)
    for folder in [*run.glob("checkpoint-*"), run / "best"]:
        shutil.rmtree(folder, ignore_errors=True)
    return _read_result(run / "result", student)


def last_checkpoint(run: Path) -> Path | None:
    """The last complete checkpoint in a run's folder. Damaged ones, and those of an interrupted save, are removed."""
    for folder in list(run.glob("checkpoint-*")):
        if damaged := damaged_files(folder):
            logger.warning("train: the checkpoint %s is damaged and is removed: %s", folder, damaged[0].name)
        if damaged or not (folder / COMPLETE).exists():
            shutil.rmtree(folder)
    return max(run.glob("checkpoint-*"), key=_step, default=None)


def check_disk(run: Path, trainable: int) -> None:
    """Raise RebaseError if the checkpoints of this many trained weights do not fit on the disk."""
    needed, free = _CHECKPOINTS * (_SAVED_BYTES * trainable + 2**24), shutil.disk_usage(run.parent).free
    if free < needed:
        raise RebaseError(
            f"train: {run.parent} has {free / 2**20:,.0f} MiB free, and checkpoints need {needed / 2**20:,.0f}. "
            "Free disk space there, or move `data` in globals.yml."
        )


def _train(
    student: Student, tokenized: TokenizedExamples, parameters: ChosenTraining, run: Path, checkpoint: Path | None,
    target: Path, started: float,
) -> tuple[pd.DataFrame, dict[str, Any]]:  # fmt: skip
    """Train, write the adapter to ``target``, and return the log and what was trained by which optimizer."""
    from rebase.student.trainer import make_trainer

    shape = measure_shape(student, parameters)
    save_best = partial(save_adapter, student=student, folder=run / "best")
    with quiet_libraries(), student.open(four_bit=parameters.four_bit) as (model, tokenizer):
        trainer: Any = make_trainer(model, tokenizer, tokenized, parameters, shape, run, save_best, started)
        trainable, _ = trainer.model.get_nb_trainable_parameters()
        check_disk(run, trainable)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if (run / "best").exists():
                shutil.copytree(run / "best", target)
            else:
                save_adapter(trainer.model, student, target)
        except Exception as error:
            if not isinstance(error, OSError) and not any(text in str(error) for text in _WRITE_ERRORS):
                raise
            raise RebaseError(
                f"train: a file under {run} cannot be written: {error}\nFree disk space there, or move `data` in "
                "globals.yml, and run again: training resumes from its last complete checkpoint."
            ) from error
        finally:
            history, optimizer = trainer.state.log_history, str(trainer.args.optim.value)
            # The trainer and the model refer to each other: without this the weights stay in memory.
            trainer.model = trainer.model_wrapped = None
            del model, trainer
    return _log_table(history, parameters.epochs), {"trainable_parameters": trainable, "optimizer": optimizer}


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _fingerprint(student: Student, training_set: pd.DataFrame, parameters: ChosenTraining) -> str:
    """What the trained weights depend on, as a folder name.

    The frequency of checkpoints, what was excluded before formatting, and the batches that a step is computed in are
    no part of it: a run resumes when less memory is free.
    """
    irrelevant = {"checkpoint_steps", "exclude", "batch_size", "gradient_accumulation"}
    content = [
        *student.identity(),
        _FORMAT,
        training_set[["prompt", "completion"]].to_numpy().tolist(),
        parameters.step_size,
        parameters.model_dump(mode="json", exclude=irrelevant),
    ]
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _read_result(folder: Path, student: Student) -> tuple[Adapter, pd.DataFrame, dict[str, Any]]:
    """The results of a finished run. Raises OSError or ValueError if they are damaged."""
    if damaged := damaged_files(folder):
        raise ValueError(f"{damaged[0].name} is not what was written")
    if problem := describe_damaged_adapter(folder / "adapter"):
        raise ValueError(problem)
    counts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    return Adapter(folder / "adapter", student.name), pd.read_parquet(folder / "log.parquet"), counts


def _log_table(history: list[dict[str, Any]], epochs: float) -> pd.DataFrame:
    """The trainer's history, one row per step; the trainer's one epoch stands for all ``epochs``."""
    names = [{"gradient_norm": "grad_norm"}.get(name, name) for name in TRAINING_LOG_COLUMNS]
    steps = pd.DataFrame(history, columns=names).groupby("step", as_index=False).first()
    return steps.assign(epoch=steps["epoch"] * epochs).set_axis(TRAINING_LOG_COLUMNS, axis="columns")
