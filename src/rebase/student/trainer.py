"""TRL's SFTTrainer as it is used here: logits only where there is loss, and less at once where memory is short."""

import gc
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebase.errors import RebaseError
from rebase.parameters import TrainParameters
from rebase.student.formatting import IGNORED
from rebase.student.handle import float32_logits
from rebase.student.preflight import Shape, target_count
from rebase.student.tokenization import Encoded, Example, chunks, order_examples

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

#: Written into a checkpoint after everything else: one without it was cut short and is not resumed from.
WHOLE = "whole"

# After so many steps of this process the log says how long the rest takes.
_TIMED_STEPS = 5


class Step:
    """The examples of one optimizer step. A class of its own, so that no library looks for tensors in it."""

    def __init__(self, examples: list[dict[str, list[int]]]) -> None:
        self.examples = [Example(example["input_ids"], example["labels"]) for example in examples]


def make_trainer(
    model: Any, tokenizer: Any, encoded: Encoded, parameters: TrainParameters, shape: Shape, run: Path,
    save_best: Callable[[Any], None],
) -> Any:  # fmt: skip
    """A trainer over the encoded examples, in an order of ours; it writes its checkpoints to ``run``.

    ``save_best`` gets the model when the loss on the held-out examples is the lowest so far.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback, ProgressCallback
    from transformers.utils.import_utils import is_flash_attn_2_available
    from trl.trainer.sft_config import SFTConfig

    examples = encoded.train
    order = order_examples(
        [len(example.input_ids) for example in examples], parameters.epochs, parameters.batch_size, parameters.seed
    )
    dataset = Dataset.from_dict(
        {"input_ids": [examples[n].input_ids for n in order], "labels": [examples[n].labels for n in order]}
    )
    cuda = torch.cuda.is_available()
    if cuda and is_flash_attn_2_available():
        model.set_attn_implementation("flash_attention_2")
    elif not cuda and parameters.four_bit:
        model = hold_decoded(model, shape)
    config = SFTConfig(
        output_dir=str(run),
        num_train_epochs=1,  # the dataset holds all epochs
        train_sampling_strategy="sequential",
        # The trainer's batch is a whole step; it is taken in parts of `batch_size` by the class below.
        per_device_train_batch_size=parameters.batch_size * parameters.gradient_accumulation,
        learning_rate=parameters.learning_rate,
        lr_scheduler_type=parameters.scheduler,
        warmup_steps=parameters.warmup_steps,
        weight_decay=parameters.weight_decay,
        optim=_optimizer(parameters.optimizer, cuda),
        max_length=None,  # what is too long is gone already
        use_cpu=not cuda,
        bf16=cuda and torch.cuda.is_bf16_supported(),
        activation_checkpointing=cuda and not _activations_fit(examples, parameters, shape),
        dataloader_pin_memory=False,
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
    trainer: Any = _trainer_class(tokenizer)(
        model,
        args=config,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=lora,
        data_collator=lambda examples: {"step": Step(examples)},
    )
    if not cuda:
        # TRL holds the adapter of a quantized model in bfloat16, which is for GPUs: most CPUs emulate it, slowly.
        for weights in trainer.model.parameters():
            if weights.requires_grad:
                weights.data = weights.data.float()
    trainer.at_once = parameters.batch_size
    trainer.packing = parameters.packing and keeps_apart(trainer, examples[:2])
    if parameters.packing and not trainer.packing:
        logger.warning("train: this student's attention lets packed examples see each other; they are padded instead.")
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_watcher(trainer, encoded.validation, parameters, save_best))
    return trainer


def hold_decoded(model: Any, shape: Shape) -> Any:
    """Hold NF4 weights decoded, in the number format of computing, where memory allows it.

    For CPUs, where decoding them anew for each product takes a good part of a step. The numbers are those of NF4,
    so the adapter is QLoRA's; only the storage is not. A model too large for that keeps its 4 bits.
    """
    import psutil  # type: ignore[import-untyped]

    if shape.weights > psutil.virtual_memory().available / 2:
        return model
    logging.getLogger("transformers.integrations.bitsandbytes").setLevel(logging.ERROR)  # it tells of the decoding
    model = model.dequantize()
    model.is_loaded_in_4bit = False  # transformers leaves it set, and TRL believes it
    return model


def target_logits(model: Any, inputs: dict[str, Any], chosen: "torch.Tensor") -> "torch.Tensor":
    """Logits ``[positions, vocabulary]`` of the ``chosen`` positions (bool ``[batch, length - 1]``) and no others.

    The output matrix is a good part of a small model's work, and most positions are prompt. Scaling and capping of
    logits stay the model's own.
    """
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, arguments: (arguments[0][:, :-1][chosen],))
    try:
        return model(**inputs, use_cache=False).logits
    finally:
        hook.remove()


def keeps_apart(trainer: Any, examples: list[Example]) -> bool:
    """Whether the model gives packed examples the logits that it gives them one by one: tried, not assumed."""
    import torch

    with _evaluating(trainer):
        apart = torch.cat([trainer.target_logits(trainer.lay_out([example], packed=False)) for example in examples])
        packed = trainer.target_logits(trainer.lay_out(examples, packed=True))
    tolerance = 0.05 if packed.dtype == torch.bfloat16 else 1e-3
    return bool((packed - apart).abs().max() <= tolerance * apart.abs().max())


def _trainer_class(tokenizer: Any) -> Any:
    import torch
    from torch.nn.functional import cross_entropy
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

    class Trainer(SFTTrainer):
        """One step a batch, in parts; the loss is the mean over all of a step's targets, however it is cut."""

        at_once: int  # examples that go through the model together
        packing: bool
        _right: Any = 0
        _targets = 0
        tokens_seen = 0

        def lay_out(self, examples: list[Example], packed: bool) -> dict[str, Any]:
            """The examples as tensors: end to end in one row with positions that start anew, or padded."""
            collate = DataCollatorForLanguageModeling(tokenizer.pad_token_id, padding_free=packed)
            rows = [{"input_ids": example.input_ids, "labels": example.labels} for example in examples]
            return self._prepare_inputs(collate(rows))

        def target_logits(self, inputs: dict[str, Any]) -> "torch.Tensor":
            labels = inputs.pop("labels")[:, 1:]
            return target_logits(self.model, inputs, labels != IGNORED)

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            labels = inputs.pop("labels")[:, 1:]
            chosen = labels != IGNORED
            logits, wanted = target_logits(model, inputs, chosen), labels[chosen]
            if model.training:
                self._right += (logits.detach().argmax(-1) == wanted).sum()
                self._targets += len(wanted)
            return cross_entropy(logits.float(), wanted, reduction="sum") / num_items_in_batch

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            examples = inputs["step"].examples
            while True:
                self._right, self._targets = 0, 0
                try:
                    loss = self._in_parts(examples, partial(super().training_step, model))
                    self.tokens_seen += sum(len(example.input_ids) for example in examples)
                    return loss
                except Exception as error:
                    if not out_of_memory(error):
                        raise
                    reason = str(error)
                # Out here the error and its frames are gone, and with them what they held.
                self._take_less(model, reason)

        def validation_loss(self, examples: list[Example]) -> float:
            """The mean loss over the examples' targets, without dropout, from float32 logits."""
            ordered = sorted(examples, key=lambda example: len(example.input_ids))
            with _evaluating(self), float32_logits(self.model):
                return float(self._in_parts(ordered, partial(self.compute_loss, self.model)))

        def _in_parts(self, examples: list[Example], take: Callable[..., Any]) -> Any:
            count = sum(map(target_count, examples))
            parts = chunks(examples, self.at_once)
            return torch.stack(
                [take(self.lay_out(part, self.packing), num_items_in_batch=count) for part in parts]
            ).sum()

        def _take_less(self, model: Any, reason: str) -> None:
            model.zero_grad(set_to_none=True)  # what the parts before it left: the step begins anew
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if self.at_once > 1:
                self.at_once //= 2
                logger.warning(
                    "train: out of memory; from now on %d examples at a time, and as many a step as before. "
                    "Set train.batch_size to %d and raise train.gradient_accumulation to have it so from the start.",
                    self.at_once, self.at_once,
                )  # fmt: skip
            elif torch.cuda.is_available() and not self.args.activation_checkpointing:
                self.args.activation_checkpointing = True
                model.enable_input_require_grads()
                model.gradient_checkpointing_enable()
                logger.warning("train: out of memory; activations are computed anew in the backward pass from now on.")
            else:
                raise RebaseError(
                    f"train: out of memory with one example at a time: {reason}\nLower train.max_length or "
                    "train.lora.rank, set train.four_bit to true, choose a smaller student.model, or free memory."
                )

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if "loss" in logs:
                logs["token_accuracy"] = float(self._right) / max(1, self._targets)
            super().log(logs, start_time)

        def floating_point_ops(self, inputs: Any) -> int:
            return 0  # counted by nobody here

    return Trainer


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short, on a GPU or in the machine."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    texts = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def _activations_fit(examples: list[Example], parameters: TrainParameters, shape: Shape) -> bool:
    """Whether the longest examples go through a GPU without computing activations twice."""
    import torch

    longest = sorted(examples, key=lambda example: len(example.input_ids))[-parameters.batch_size :]
    tokens = len(longest) * len(longest[-1].input_ids)
    needed = shape.memory(parameters.lora.rank, tokens, sum(map(target_count, longest))) - shape.weights
    free, _ = torch.cuda.mem_get_info()
    return needed < 0.7 * free  # an estimate: decoded weights and the allocator need room too


def _optimizer(name: str, cuda: bool) -> str:
    """The optimizer asked for; 8-bit and paged ones need a GPU and give way to plain AdamW without one."""
    if cuda or not any(mark in name for mark in ("8bit", "paged", "bnb")):
        return name
    logger.debug("train: the optimizer %s needs a GPU; adamw_torch is used.", name)
    return "adamw_torch"


@contextmanager
def _evaluating(trainer: Any) -> Iterator[None]:
    import torch

    training = trainer.model.training
    trainer.model.eval()
    try:
        with torch.no_grad(), trainer.compute_loss_context_manager():
            yield
    finally:
        trainer.model.train(training)


def _watcher(
    trainer: Any, validation: list[Example], parameters: TrainParameters, save_best: Callable[[Any], None]
) -> Any:
    """A callback: progress, the mark on whole checkpoints, evaluation each epoch, the end where a loss is no number."""
    from transformers import ProgressCallback

    class Watcher(ProgressCallback):
        training_bar: Any

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_train_begin(args, state, control, **kwargs)  # type: ignore[no-untyped-call]
            self.training_bar.set_description("train")
            # A resumed run has these steps behind it.
            self.training_bar.update(state.global_step)
            self.current_step = self.first_step = state.global_step
            self.began = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_step_end(args, state, control, **kwargs)  # type: ignore[no-untyped-call]
            if state.global_step == self.first_step + _TIMED_STEPS:
                seconds = time.monotonic() - self.began
                left = seconds / _TIMED_STEPS * (state.max_steps - state.global_step)
                rate = trainer.tokens_seen / seconds
                logger.info("train: %.0f tokens/s; about %.0f min are left (%d steps measured).", rate, left / 60,
                            _TIMED_STEPS)  # fmt: skip
            epochs = [math.floor(step * parameters.epochs / state.max_steps + 1e-9)
                      for step in (state.global_step - 1, state.global_step)]  # fmt: skip
            if validation and (epochs[1] > epochs[0] or state.global_step == state.max_steps):
                before = [entry["validation_loss"] for entry in state.log_history if "validation_loss" in entry]
                loss = trainer.validation_loss(validation)
                # Not by trainer.log: that would stand for the log of this step.
                state.log_history.append({"step": state.global_step, "validation_loss": loss})
                if parameters.keep == "best" and loss < min(before, default=math.inf):
                    save_best(trainer.model)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            loss = (logs or {}).get("loss")
            if loss is None:
                return
            norm = logs.get("grad_norm", 0.0)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise RebaseError(
                    f"train: the loss at step {state.global_step} is {loss} (gradient norm {norm}). "
                    f"{_last_good(Path(args.output_dir))} Lower train.learning_rate (now {args.learning_rate}), raise "
                    "train.warmup_steps, or set train.four_bit to false."
                )
            self.training_bar.set_postfix(loss=f"{loss:.3f}")

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE).touch()

    return Watcher()


def _last_good(run: Path) -> str:
    last = last_checkpoint(run)
    return f"The last good checkpoint is kept: {last}." if last else "There is no checkpoint before it."


def last_checkpoint(run: Path) -> Path | None:
    """The last whole checkpoint in a run's folder."""
    whole = [folder for folder in run.glob("checkpoint-*") if (folder / WHOLE).exists()]
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)
