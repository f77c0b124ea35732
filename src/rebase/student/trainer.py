"""Training on top of TRL's ``SFTTrainer``: logits only at positions with loss, smaller parts when out of memory.

Import it only when training starts: it imports torch and TRL.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from peft import LoraConfig
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils.import_utils import is_flash_attn_2_available
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from rebase.errors import RebaseError
from rebase.files import write_checksums
from rebase.parameters import ChosenTraining
from rebase.student.formatting import IGNORED
from rebase.student.handle import float32_logits
from rebase.student.hyperparameters import DivergedError
from rebase.student.preflight import Shape
from rebase.student.quantization import dequantize_if_it_fits
from rebase.student.tokenization import TokenizedExample, TokenizedExamples, chunks, order_examples
from rebase.student.training import COMPLETE, last_checkpoint

logger = logging.getLogger(__name__)


class StepTrainer(SFTTrainer):
    """Takes one optimizer step per batch, in parts; the loss is the mean over the step's targets in any split."""

    model: Any
    processing_class: Any
    part_size: int  # examples in one forward pass
    packing: bool
    _correct: Any = 0
    _targets = 0

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        logits, targets = target_logits(model, inputs)
        if model.training:
            self._correct += (logits.detach().argmax(-1) == targets).sum()
            self._targets += len(targets)
        return cross_entropy(logits.float(), targets, reduction="sum") / num_items_in_batch

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        compute = partial(super().training_step, model)

        def step() -> Any:
            self._correct, self._targets = 0, 0
            return sum_over_parts(self, inputs["step"].examples, compute)

        return retry_when_out_of_memory(self, step)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs["token_accuracy"] = float(self._correct) / max(1, self._targets)
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the inputs of a step have no tensors to count


def make_trainer(
    model: Any, tokenizer: Any, tokenized: TokenizedExamples, parameters: ChosenTraining, shape: Shape, run: Path,
    save_best: Callable[[Any], None], started: float,
) -> StepTrainer:  # fmt: skip
    """A trainer over the tokenized examples that writes its checkpoints to ``run``.

    ``save_best`` gets the model whenever the validation loss is the lowest so far. Checkpoints have the seconds since
    ``started``, by ``time.monotonic``.
    """
    examples = tokenized.train
    order = order_examples(list(map(len, examples)), parameters.epochs, parameters.step_size, parameters.seed)
    cuda = torch.cuda.is_available()
    mixed = cuda and model.dtype == torch.bfloat16
    if mixed and is_flash_attn_2_available():  # it computes in 16 bits alone
        model.set_attn_implementation("flash_attention_2")
    elif not cuda and parameters.four_bit:
        model = dequantize_if_it_fits(model, shape)
    trainer = StepTrainer(
        model,
        args=_configure(parameters, run, mixed, cuda and not _activations_fit(examples, parameters, shape)),
        train_dataset=Dataset.from_list([vars(examples[index]) for index in order]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=parameters.lora.rank,
            lora_alpha=parameters.lora.alpha,
            lora_dropout=parameters.lora.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        # In a namespace, so that no library looks for tensors in it.
        data_collator=lambda rows: {"step": SimpleNamespace(examples=[TokenizedExample(**row) for row in rows])},
    )
    if not mixed:
        # TRL has the adapter of a quantized model in bfloat16, which most CPUs emulate slowly. In float32 it would be
        # rounded.
        for weights in trainer.model.parameters():
            if weights.requires_grad:
                weights.data = weights.data.float()
    trainer.part_size = parameters.batch_size
    trainer.packing = parameters.packing and separates_packed(trainer, examples[:2])
    if parameters.packing and not trainer.packing:
        logger.warning("train: this student's attention lets packed examples see each other; they are padded instead.")
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Monitor(trainer, tokenized.validation, parameters, save_best, started))
    return trainer


def lay_out(trainer: StepTrainer, examples: list[TokenizedExample], packed: bool) -> dict[str, Any]:
    """The examples as tensors: in one row with positions that restart, or padded."""
    collate = DataCollatorForLanguageModeling(trainer.processing_class.pad_token_id, padding_free=packed)
    batch = collate([{"input_ids": example.input_ids, "labels": example.labels} for example in examples])
    device = trainer.args.device
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}


def target_logits(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``[targets, vocabulary]`` at the positions with loss and no others, and the targets.

    The output matrix is a good part of a small model's work, and most positions are prompt. TRL's own loss (1.16) has
    the same value, but without a GPU it computes the logits of prompts too, and all of them again in the backward
    pass: a step of a 135M model on a CPU took 1.8 times as long.
    """
    labels = inputs["labels"][:, 1:]
    has_loss = labels != IGNORED
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0][:, :-1][has_loss],))
    try:
        arguments = {name: value for name, value in inputs.items() if name != "labels"}
        return model(**arguments, use_cache=False).logits, labels[has_loss]
    finally:
        hook.remove()


@torch.no_grad()
def separates_packed(trainer: StepTrainer, examples: list[TokenizedExample]) -> bool:
    """Whether packed examples get the logits that they get one by one; measured on ``examples``."""
    model = trainer.model.eval()  # until the first step
    with trainer.compute_loss_context_manager():
        alone = torch.cat([target_logits(model, lay_out(trainer, [one], packed=False))[0] for one in examples])
        packed, _ = target_logits(model, lay_out(trainer, examples, packed=True))
    tolerance = 0.05 if packed.dtype == torch.bfloat16 else 1e-3
    return bool((packed - alone).abs().max() <= tolerance * alone.abs().max())


def sum_over_parts(trainer: StepTrainer, examples: list[TokenizedExample], compute: Callable[..., Any]) -> Any:
    """Sum ``compute`` over parts of ``part_size`` examples; each part is divided by the targets of all examples."""
    count = sum(example.target_count for example in examples)
    losses = [
        compute(lay_out(trainer, part, trainer.packing), num_items_in_batch=count)
        for part in chunks(examples, trainer.part_size)
    ]
    return torch.stack(losses).sum()


@torch.no_grad()
def validation_loss(trainer: StepTrainer, examples: list[TokenizedExample]) -> float:
    """The mean loss over the examples' targets, without dropout, from float32 logits."""
    model = trainer.model.eval()  # until the next step
    compute = partial(sum_over_parts, trainer, sorted(examples, key=len), partial(trainer.compute_loss, model))
    with trainer.compute_loss_context_manager(), float32_logits(model):
        return float(retry_when_out_of_memory(trainer, compute))


def retry_when_out_of_memory(trainer: StepTrainer, compute: Callable[[], Any]) -> Any:
    """The result of ``compute``, which is repeated with less memory; raise RebaseError if the least is too much."""
    while True:
        try:
            return compute()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error)
        # Outside of the handler the error no longer holds its frames, and with them memory.
        reduce_memory(trainer, reason)


def reduce_memory(trainer: StepTrainer, reason: str) -> None:
    """Halve the part size, then recompute activations; raise RebaseError if neither is possible."""
    model = trainer.model
    model.zero_grad(set_to_none=True)  # of parts that were done: the step starts again
    clear_device_cache(garbage_collection=True)
    if trainer.part_size > 1:
        trainer.part_size //= 2
        logger.warning(
            "train: out of memory; from now on %d examples at a time, and as many per step as before. Set "
            "train.batch_size to %d and raise train.gradient_accumulation to start with this.",
            trainer.part_size, trainer.part_size,
        )  # fmt: skip
    elif torch.cuda.is_available() and torch.is_grad_enabled() and not trainer.args.activation_checkpointing:
        trainer.args.activation_checkpointing = True
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
        logger.warning("train: out of memory; from now on the backward pass recomputes activations.")
    else:
        raise RebaseError(
            f"train: out of memory with one example at a time: {reason}\nLower train.max_length or train.lora.rank, "
            "set train.four_bit to true, choose a smaller student.model, or free memory."
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory is short, on a GPU or in the machine."""
    texts = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    )


@dataclass
class Monitor(TrainerCallback):
    """Shows progress, marks complete checkpoints, measures the validation loss, and stops on a non-finite loss."""

    trainer: StepTrainer
    validation: list[TokenizedExample]
    parameters: ChosenTraining
    save_best: Callable[[Any], None]
    started: float

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="train")
        if self.validation and not state.global_step:
            self._validate(args, state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update()
        before, now = (
            math.floor(step * self.parameters.epochs / state.max_steps + 1e-9)
            for step in (state.global_step - 1, state.global_step)
        )
        if self.validation and (now > before or state.global_step == state.max_steps):
            self._validate(args, state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        loss, norm = logs["loss"], logs.get("grad_norm", 0.0)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._stop(args, f"the loss at step {state.global_step} is {loss} (gradient norm {norm})")
        self._bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_checksums(checkpoint)
        (checkpoint / COMPLETE).write_text(f"{time.monotonic() - self.started:.1f}", encoding="utf-8")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.close()

    def _stop(self, args: Any, problem: str) -> NoReturn:
        last = last_checkpoint(Path(args.output_dir))
        advice = f"The last good checkpoint is {last}." if last else "There is no checkpoint before it."
        raise DivergedError(
            f"train: {problem}. {advice} Lower train.learning_rate (now {args.learning_rate}), raise "
            "train.warmup_steps, or set train.four_bit to false."
        )

    def _validate(self, args: Any, state: Any) -> None:
        earlier = [
            entry["validation_loss"] for entry in state.log_history if "validation_loss" in entry and entry["step"]
        ]
        loss = validation_loss(self.trainer, self.validation)
        if not math.isfinite(loss) and not state.global_step:
            raise RebaseError(
                f"train: the validation loss of the untrained student is {loss}. Set compute.dtype to float32, "
                "train.four_bit to false, or check the files of student.model."
            )
        if not math.isfinite(loss):
            # The last step can be the one that diverges, after its loss was computed.
            self._stop(args, f"the validation loss after step {state.global_step} is {loss}")
        # Not by trainer.log, which would take it for the log of this step.
        state.log_history.append({"step": state.global_step, "validation_loss": loss})
        if self.parameters.keep == "best" and state.global_step and loss < min(earlier, default=math.inf):
            self.save_best(self.trainer.model)


def _configure(parameters: ChosenTraining, run: Path, mixed: bool, activation_checkpointing: bool) -> SFTConfig:
    cuda = torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(run),
        num_train_epochs=1,  # the dataset holds all epochs
        train_sampling_strategy="sequential",
        # A batch of the trainer is a whole step; StepTrainer splits it into parts of `batch_size`.
        per_device_train_batch_size=parameters.step_size,
        learning_rate=parameters.learning_rate,
        lr_scheduler_type=parameters.scheduler,
        warmup_steps=parameters.warmup_steps,
        weight_decay=parameters.weight_decay,
        optim=_choose_optimizer(parameters.optimizer, cuda),
        max_length=None,  # longer examples are rejected before
        use_cpu=not cuda,
        bf16=mixed,
        activation_checkpointing=activation_checkpointing,
        dataloader_pin_memory=False,
        save_steps=parameters.checkpoint_steps,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        seed=parameters.seed,
    )


def _activations_fit(examples: list[TokenizedExample], parameters: ChosenTraining, shape: Shape) -> bool:
    """Whether the longest examples fit on the GPU without recomputing activations."""
    longest = sorted(examples, key=len)[-parameters.batch_size :]
    targets = sum(example.target_count for example in longest)
    needed = shape.memory(parameters.lora.rank, len(longest) * len(longest[-1]), targets) - shape.weights
    free, _ = torch.cuda.mem_get_info()
    return needed < 0.7 * free  # an estimate: decoded weights and the allocator need room too


def _choose_optimizer(name: str, cuda: bool) -> str:
    """The optimizer of this name. Without a GPU it is plain AdamW for those of bitsandbytes, which are slower there."""
    return "adamw_torch" if not cuda and "adamw" in name and "torch" not in name else name
