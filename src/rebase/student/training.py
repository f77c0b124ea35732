"""QLoRA fine-tuning of the student (docs/method.md section 7), resumable."""

import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rebase.errors import RebaseError
from rebase.files import replacing_folder
from rebase.parameters import TrainParameters
from rebase.records import Adapter
from rebase.student.formatting import encode_example
from rebase.student.handle import Student, quiet_libraries

logger = logging.getLogger(__name__)

#: Why an example is not trained on: its target would be cut, and the student would learn not to stop.
TRUNCATED = "target_truncated"

# Written into a checkpoint after everything else: one without it was cut short and is not resumed from.
_WHOLE = "whole"

# Batches that are sorted by length together: enough to save padding, few enough to keep the order random.
_BATCHES_SORTED = 8


@dataclass(frozen=True)
class _Encoded:
    """Examples as token ids and labels, and how many did not fit."""

    input_ids: list[list[int]]
    labels: list[list[int]]
    truncated: int


def train_adapter(
    student: Student, training_set: pd.DataFrame, parameters: TrainParameters
) -> tuple[Adapter, pd.DataFrame, dict[str, Any]]:
    """Train a LoRA adapter on ``training_set`` (columns ``prompt``, ``completion``), the loss on completions alone.

    Returns the adapter (a folder under ``student.workdir``), the log (``step``, ``epoch``, ``loss``,
    ``learning_rate``, ``token_accuracy``, ``gradient_norm``: one line a step) and the counts for the summary.
    Killed and started again with the same data and settings, it goes on from its last whole checkpoint and ends with
    the same adapter. Raises RebaseError where there is less than one batch, or the loss is not a number.
    """
    began = time.monotonic()
    encoded = _encode(student, training_set, parameters)
    _check_enough(len(encoded.input_ids), encoded.truncated, parameters)
    run = student.workdir / _fingerprint(student, training_set, parameters)
    checkpoint = _last_checkpoint(run)
    with quiet_libraries(), student.open(four_bit=parameters.four_bit) as (model, tokenizer):
        trainer = _make_trainer(model, tokenizer, encoded, parameters, run)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        adapter = _save_adapter(trainer.model, student, run / "adapter")
        log = _log_frame(trainer.state.log_history, parameters.epochs)
        trainable, _ = trainer.model.get_nb_trainable_parameters()
        # The trainer and the model refer to each other: without this the weights outlive the block.
        trainer.model = trainer.model_wrapped = None
        del model, trainer
    for left in run.glob("checkpoint-*"):
        shutil.rmtree(left)
    counts = {
        "in": len(training_set),
        "kept": len(encoded.input_ids),
        "refused": {TRUNCATED: encoded.truncated} if encoded.truncated else {},
        "steps": int(log["step"].max()),
        "trainable_parameters": trainable,
        "first_loss": float(log["loss"].iloc[0]),
        "last_loss": float(log["loss"].iloc[-1]),
        "resumed_from_step": int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0,
        "seconds": round(time.monotonic() - began, 1),
    }
    return adapter, log, counts


def order_examples(lengths: Sequence[int], epochs: float, batch_size: int, seed: int) -> list[int]:
    """The order in which examples of these lengths are seen, all epochs in one list; batches are of like length.

    Fixed by the seed, so that a resumed run sees what an uninterrupted one sees. Each epoch has every example once;
    a part of an epoch has a random part of them.
    """
    draw = np.random.default_rng(seed)
    seen: list[int] = []
    total = max(1, round(epochs * len(lengths)))
    while len(seen) < total:
        seen += draw.permutation(len(lengths)).tolist()
    ordered: list[int] = []
    for group in _chunks(seen[:total], _BATCHES_SORTED * batch_size):
        batches = _chunks(sorted(group, key=lambda number: lengths[number]), batch_size)
        # Only the very last batch may be short: it stays last.
        full, short = [b for b in batches if len(b) == batch_size], [b for b in batches if len(b) < batch_size]
        draw.shuffle(full)
        ordered += [number for batch in full + short for number in batch]
    return ordered


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _encode(student: Student, training_set: pd.DataFrame, parameters: TrainParameters) -> _Encoded:
    tokenizer = student.tokenizer()
    pairs = zip(training_set["prompt"], training_set["completion"], strict=True)
    examples = [encode_example(tokenizer, prompt, completion) for prompt, completion in pairs]
    fitting = [example for example in examples if len(example[0]) <= parameters.max_length]
    return _Encoded([ids for ids, _ in fitting], [labels for _, labels in fitting], len(examples) - len(fitting))


def _check_enough(count: int, truncated: int, parameters: TrainParameters) -> None:
    needed = parameters.batch_size * parameters.gradient_accumulation
    if count >= needed:
        return
    too_long = f" ({truncated} more are longer than train.max_length = {parameters.max_length})" if truncated else ""
    raise RebaseError(
        f"train: there are {count} training examples{too_long}, fewer than one batch of {needed} "
        f"(train.batch_size {parameters.batch_size} x train.gradient_accumulation {parameters.gradient_accumulation}). "
        "Look at examples_refused and retrieval_refused for what was lost; raise retrieve.top_n, "
        "transform.max_examples or train.max_length, or make the batch smaller."
    )


def _fingerprint(student: Student, training_set: pd.DataFrame, parameters: TrainParameters) -> str:
    """What the trained weights depend on, as a folder name. How often checkpoints are written is not part of it."""
    content = [
        student.model,
        student.revision,
        training_set[["prompt", "completion"]].to_numpy().tolist(),
        parameters.model_dump(mode="json", exclude={"checkpoint_steps"}),
    ]
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _last_checkpoint(run: Path) -> Path | None:
    """The last whole checkpoint of a run that was cut short; half-written ones are removed."""
    whole = []
    for folder in run.glob("checkpoint-*"):
        if (folder / _WHOLE).exists():
            whole.append(folder)
        else:
            shutil.rmtree(folder)
    if not whole:
        return None
    last = max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]))
    logger.info("train: going on from %s", last.name)
    return last


def _make_trainer(model: Any, tokenizer: Any, encoded: _Encoded, parameters: TrainParameters, run: Path) -> Any:
    """TRL's SFTTrainer over examples that are tokens already, in an order of ours."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback, ProgressCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    order = order_examples(
        [len(ids) for ids in encoded.input_ids], parameters.epochs, parameters.batch_size, parameters.seed
    )
    dataset = Dataset.from_dict(
        {"input_ids": [encoded.input_ids[n] for n in order], "labels": [encoded.labels[n] for n in order]}
    )
    cuda = torch.cuda.is_available()
    config = SFTConfig(
        output_dir=str(run),
        num_train_epochs=1,  # the dataset holds all epochs
        train_sampling_strategy="sequential",
        per_device_train_batch_size=parameters.batch_size,
        gradient_accumulation_steps=parameters.gradient_accumulation,
        learning_rate=parameters.learning_rate,
        lr_scheduler_type=parameters.scheduler,
        warmup_steps=parameters.warmup_steps,
        weight_decay=parameters.weight_decay,
        optim=_optimizer(parameters.optimizer, cuda),
        max_length=parameters.max_length if parameters.packing else None,  # what is too long is gone already
        packing=parameters.packing,
        packing_strategy="bfd",
        use_cpu=not cuda,
        bf16=cuda and torch.cuda.is_bf16_supported(),
        activation_checkpointing=cuda,  # on a CPU memory is not what is short
        dataloader_pin_memory=cuda,
        save_steps=parameters.checkpoint_steps,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        seed=parameters.seed,
    )
    lora = LoraConfig(
        r=parameters.lora.rank,
        lora_alpha=parameters.lora.alpha,
        lora_dropout=parameters.lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    trainer: Any = SFTTrainer(model, args=config, train_dataset=dataset, processing_class=tokenizer, peft_config=lora)
    if not cuda:
        # TRL holds the adapter of a quantised model in bfloat16, which is for GPUs: most CPUs emulate it, slowly.
        for weights in trainer.model.parameters():
            if weights.requires_grad:
                weights.data = weights.data.float()
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_watcher())
    return trainer


def _optimizer(name: str, cuda: bool) -> str:
    """The optimiser asked for; 8-bit and paged ones need a GPU and give way to plain AdamW without one."""
    if cuda or not any(mark in name for mark in ("8bit", "paged", "bnb")):
        return name
    logger.info("train: the optimizer %s needs a GPU; adamw_torch is used.", name)
    return "adamw_torch"


def _watcher() -> Any:
    """A trainer callback: the progress bar, the mark on whole checkpoints, and the end where the loss is no number."""
    from transformers import ProgressCallback

    class Watcher(ProgressCallback):
        training_bar: Any

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_train_begin(args, state, control, **kwargs)  # type: ignore[no-untyped-call]
            self.training_bar.set_description("train")
            # A resumed run has these steps behind it.
            self.training_bar.update(state.global_step)
            self.current_step = state.global_step

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            loss = (logs or {}).get("loss")
            if loss is None:
                return
            if not math.isfinite(loss):
                raise RebaseError(
                    f"train: the loss at step {state.global_step} is {loss}. Lower train.learning_rate "
                    f"(now {args.learning_rate}), raise train.warmup_steps, or set train.four_bit to false."
                )
            self.training_bar.set_postfix(loss=f"{loss:.3f}")

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _WHOLE).touch()

    return Watcher()


def _save_adapter(model: Any, student: Student, folder: Path) -> Adapter:
    """Write config and safetensors, under the student's name instead of the path it was loaded from."""
    config = model.peft_config["default"]
    config.base_model_name_or_path = student.name
    config.revision = student.revision
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary, safe_serialization=True, save_embedding_layers=False)
    return Adapter(folder, student.name)


def _log_frame(history: list[dict[str, Any]], epochs: float) -> pd.DataFrame:
    """The trainer's history as a table; its one epoch over the dataset stands for all ``epochs``."""
    return pd.DataFrame(
        {
            "step": entry["step"],
            "epoch": entry["epoch"] * epochs,
            "loss": entry["loss"],
            "learning_rate": entry["learning_rate"],
            "token_accuracy": entry.get("mean_token_accuracy"),
            "gradient_norm": entry.get("grad_norm"),
        }
        for entry in history
        if "loss" in entry
    )
