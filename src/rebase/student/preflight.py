"""Checks and estimates before the first training step."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.parameters import ChosenLora, ChosenTraining, TrainParameters
from rebase.student.formatting import IGNORED
from rebase.student.handle import Student
from rebase.student.hyperparameters import (
    ALPHA_OF_RANK,
    choose_epochs,
    choose_learning_rate,
    choose_rank,
    choose_step,
    is_far_above,
)
from rebase.student.memory import available_memory
from rebase.student.prefill import count_learned_positions
from rebase.student.tokenization import TokenizedExample, TokenizedExamples, chunks, order_examples, tokenize
from rebase.weights import resolve_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# The share of the measured matrix rate that training is assumed to reach; the rest goes to attention and small steps.
_MATRIX_SHARE = 0.5
# Bytes of a trained number: weight, gradient and AdamW's two moments, in float32.
_TRAINED_BYTES = 16
# On a CPU: bytes of Python and its libraries, and what a token keeps for the backward pass, relative to inputs and
# outputs of the linear layers, by the bytes of a number. 16-bit numbers are also kept as float32, for the adapter. On a
# GPU: 0.99 on Llama's architecture. Measured with benchmarks/memory.py and benchmarks/train.py.
_PROCESS_BYTES, _KEPT_ON_CPU = 850 * 2**20, {2: 2.4, 4: 2.0}
# A batch of `auto` leaves room for an error of the estimate.
_SAFETY = 1.25
#: What is chosen, in records and summaries.
CHOSEN = {"learning_rate", "epochs", "batch_size", "gradient_accumulation", "lora"}
_LOGGED_CHARACTERS = 240  # of the end of an example


@dataclass(frozen=True)
class Shape:
    """The sizes that determine a student's cost.

    ``total`` counts all weights, ``linear`` those of the layers with LoRA, ``head`` those of the output matrix.
    ``widths`` sums inputs and outputs of the linear layers. The others are bytes: ``weights`` of the frozen weights,
    ``token`` of what a token keeps for the backward pass, ``process`` of the libraries, and ``loading`` at the peak of
    loading. ``positions`` is the longest text of a student that learned its positions, None for others.
    """

    total: int
    linear: int
    head: int
    widths: int
    vocabulary: int
    weights: int
    token: int
    process: int
    loading: int
    positions: int | None

    def memory(self, rank: int, tokens: int, targets: int) -> int:
        """Bytes at the peak of training: weights, adapter with optimizer, and what one pass of these tokens needs."""
        passing = tokens * self.token + 3 * 4 * targets * self.vocabulary
        return self.process + self.weights + _TRAINED_BYTES * rank * self.widths + passing

    def operations(self, tokens: int, targets: int) -> int:
        """Floating-point operations of forward and backward pass; frozen weights need no gradient."""
        return 4 * (self.linear * tokens + self.head * targets)


def choose_settings(
    parameters: TrainParameters, tokenized: TokenizedExamples, shape: Shape, free: int
) -> ChosenTraining:
    """The settings with a value for each ``auto``. ``free`` bytes of memory limit a batch of ``auto``, never a step.

    Raises RebaseError if there are fewer examples than a step has; a batch of ``auto`` is smaller then, but not the
    number of batches in a step.
    """
    count, rate, epochs, lora = len(tokenized.train), parameters.learning_rate, parameters.epochs, parameters.lora
    batch = choose_step(count) if parameters.batch_size == "auto" else parameters.batch_size
    while parameters.batch_size == "auto" and batch > 1 and batch * parameters.gradient_accumulation > count:
        batch //= 2
    step = batch * parameters.gradient_accumulation
    if count < step:
        rejected = f" (not counting {tokenized.rejected})" if tokenized.rejected else ""
        raise RebaseError(
            f"train: there are {count} training examples{rejected}, fewer than one step of {step} (train.batch_size "
            f"{batch} x train.gradient_accumulation {parameters.gradient_accumulation}). See examples_rejected and "
            "retrieval_rejected for the reasons; raise retrieve.top_n, transform.max_examples or train.max_length, or "
            "lower train.batch_size or train.gradient_accumulation."
        )
    if rate == "auto":
        rate = choose_learning_rate(shape.total)
    if epochs == "auto":
        epochs = choose_epochs(math.ceil(count / step), rate)
    rank = lora.rank
    if rank == "auto":
        rank = choose_rank(shape.widths, sum(example.target_count for example in tokenized.train))
    alpha = ALPHA_OF_RANK * rank if lora.alpha == "auto" else lora.alpha
    values = dict(parameters) | {"learning_rate": rate, "epochs": epochs, "batch_size": batch}
    values["lora"] = ChosenLora.model_construct(rank=rank, alpha=alpha, dropout=lora.dropout)
    chosen = ChosenTraining.model_construct(**values)
    if parameters.batch_size == "auto":
        while chosen.batch_size > 1 and _SAFETY * training_memory(chosen, tokenized, shape) > free:
            halved = {"batch_size": chosen.batch_size // 2, "gradient_accumulation": 2 * chosen.gradient_accumulation}
            chosen = chosen.model_copy(update=halved)
    return chosen


def plan_batches(parameters: ChosenTraining, examples: Sequence[TokenizedExample]) -> list[list[TokenizedExample]]:
    """All batches of the training, in order."""
    order = order_examples(list(map(len, examples)), parameters.epochs, parameters.step_size, parameters.seed)
    batches = [batch for step in chunks(order, parameters.step_size) for batch in chunks(step, parameters.batch_size)]
    return [[examples[index] for index in batch] for batch in batches]


def padded_size(batch: Sequence[TokenizedExample]) -> int:
    """How many tokens a batch has when all its examples are as long as its longest one."""
    return len(batch) * max(map(len, batch))


def training_memory(parameters: ChosenTraining, tokenized: TokenizedExamples, shape: Shape) -> int:
    """Bytes at the peak of training, in the batch that needs most: by its tokens, or by those with loss."""
    return max(
        shape.memory(parameters.lora.rank, padded_size(batch), sum(example.target_count for example in batch))
        for batch in plan_batches(parameters, tokenized.train)
    )


def estimate_memory(parameters: ChosenTraining, tokenized: TokenizedExamples, shape: Shape) -> int:
    """Bytes at the peak of loading and training."""
    return max(shape.loading, training_memory(parameters, tokenized, shape))


def explain_batch(
    parameters: TrainParameters, chosen: ChosenTraining, tokenized: TokenizedExamples, shape: Shape
) -> str:
    """How many examples a batch has and why: the end of a sentence about the memory."""
    batch, most = chosen.batch_size, chosen.step_size // parameters.gradient_accumulation
    if parameters.batch_size != "auto":
        return f"a batch has {batch}, as train.batch_size says"
    if batch == most:
        return f"so a batch has {batch}"
    needed = training_memory(chosen.model_copy(update={"batch_size": most}), tokenized, shape)
    return f"so a batch has {batch} and not {most}, which need {needed / 2**30:.1f} GiB"


def check_examples(
    tokenized: TokenizedExamples, tokenizer: "PreTrainedTokenizerBase", parameters: TrainParameters
) -> None:
    """Raise RebaseError if nothing can be learned: all cut, no loss, or no end of turn."""
    count = len(tokenized.train)
    if not count and tokenized.truncated and not tokenized.validation:
        raise RebaseError(
            f"train: all {tokenized.truncated} targets would be cut: every example is longer than train.max_length = "
            f"{parameters.max_length} tokens. Raise train.max_length."
        )
    if tokenizer.eos_token_id is None:
        raise RebaseError(
            "train: the student's tokenizer has no end-of-text token (eos_token), so the student would never learn to "
            "stop. Set `eos_token` in its tokenizer_config.json, or choose another student.model."
        )
    if empty_count := sum(not example.target_count for example in tokenized.train):
        raise RebaseError(
            f"train: {empty_count} of {count} examples have no token with loss: their completions are empty. "
            "Look at training_set and at the student's chat template."
        )
    if endless_count := sum(example.labels[-1] != tokenizer.eos_token_id for example in tokenized.train):
        raise RebaseError(
            f"train: {endless_count} of {count} targets do not end with {tokenizer.eos_token!r}, so the student would "
            "not learn to stop. Look at training_set and at the student's chat template."
        )


def inspect_training(training_set: pd.DataFrame, student: Student, parameters: TrainParameters) -> dict[str, Any]:
    """Check and estimate the planned training, and log it.

    Returns the ``preflight`` record. Raises RebaseError if nothing can be learned from the examples.
    """
    tokenized, tokenizer = tokenize(student, training_set, parameters), student.tokenizer()
    rate, shape = matrix_rate(resolve_dtype(student.dtype)), measure_shape(student, parameters)
    record = inspect(tokenized, tokenizer, parameters, shape, rate, free_memory())
    summary, _, details = describe(record).partition("\n")
    logger.info("%s", summary)
    logger.debug("%s", details)
    if record["memory"]["bytes"] > record["memory"]["free"]:
        logger.warning(
            "train: this needs more memory than is free. Close other programs, lower train.batch_size or "
            "train.max_length, or choose a smaller student.model."
        )
    chosen_rate = choose_learning_rate(shape.total)
    if is_far_above(record["learning_rate"], chosen_rate):
        logger.warning(
            "train: the learning rate %g is far above the one that auto chooses for a student of this size, %g: the "
            "student may learn nothing. Set train.learning_rate to auto or to a lower number.",
            record["learning_rate"], chosen_rate,
        )  # fmt: skip
    return record


def inspect(
    tokenized: TokenizedExamples,
    tokenizer: "PreTrainedTokenizerBase",
    parameters: TrainParameters,
    shape: Shape,
    rate: float,
    free: int,
) -> dict[str, Any]:
    """A record of the planned training, fit for JSON; ``rate`` is in floating-point operations per second.

    ``free`` is the memory in bytes. Raises RebaseError if nothing can be learned.
    """
    check_examples(tokenized, tokenizer, parameters)
    chosen = choose_settings(parameters, tokenized, shape, free)
    examples = tokenized.train
    lengths = list(map(len, examples))
    longest = max(map(len, [*examples, *tokenized.validation]))
    if shape.positions and longest > shape.positions:
        raise RebaseError(
            f"train: an example has {longest} tokens, and the student has {shape.positions} positions. Set "
            f"train.max_length to {shape.positions}: longer examples are rejected then."
        )
    batches = plan_batches(chosen, examples)
    tokens = sum(len(example) for batch in batches for example in batch)
    targets = sum(example.target_count for batch in batches for example in batch)
    padded = sum(map(padded_size, batches))
    return {
        "in": len(examples) + sum(tokenized.rejected.values()),
        "kept": len(examples),
        "rejected": tokenized.rejected,
        **chosen.model_dump(mode="json", include=CHOSEN),
        "steps": math.ceil(sum(map(len, batches)) / chosen.step_size),
        "tokens": tokens,
        "tokens_with_loss": targets,
        "padding_share": 0.0 if parameters.packing else round(1 - tokens / padded, 4),
        "lengths": _histogram(lengths),
        "longest": max(lengths),
        "max_length": parameters.max_length,
        "end_of_turn": {"token": str(tokenizer.eos_token), "id": tokenizer.eos_token_id, "examples": len(examples)},
        "examples": [_show(tokenizer, examples[0], "first"), _show(tokenizer, max(examples, key=len), "longest")],
        "memory": {
            "bytes": estimate_memory(chosen, tokenized, shape),
            "free": free,
            "how": "the larger of: the libraries, the stored weights and the loaded ones; and the libraries, the "
            "weights, the adapter with its optimizer, and the activations of the largest batch",
            "batch": explain_batch(parameters, chosen, tokenized, shape),
        },
        "time": {
            "seconds": round(shape.operations(tokens, targets) / (rate * _MATRIX_SHARE)),
            "how": f"operations at {_MATRIX_SHARE:.0%} of {rate / 1e9:,.0f} GFLOP/s, measured on a matrix product "
            "here; the progress bar has a better estimate after the first steps",
        },
    }


def describe(record: dict[str, Any]) -> str:
    """The record as a line for the log and more lines with details; tokens with loss are between ⟦ and ⟧."""
    highest, memory = max(count for _, _, count in record["lengths"]), record["memory"]
    examples = [
        f"{example['which']} ({example['tokens']} tokens, {example['tokens_with_loss']} with loss, end of turn at "
        f"{example['end_of_turn_at']}): …{example['text'][-_LOGGED_CHARACTERS:]!r}"
        for example in record["examples"]
    ]
    bars = [
        f"{low:>6}–{high:<6}{count:>6} {'█' * round(24 * count / highest)}".rstrip()
        for low, high, count in record["lengths"]
    ]
    rejected = f" (rejected: {record['rejected']})" if record["rejected"] else ""
    return "\n".join(
        [
            f"train: {record['kept']} of {record['in']} examples{rejected}, epochs {record['epochs']:g}, "
            f"{record['steps']} steps of {record['batch_size'] * record['gradient_accumulation']}, learning rate "
            f"{record['learning_rate']:g}, LoRA rank {record['lora']['rank']}, about "
            f"{record['time']['seconds'] / 60:.1f} min; it needs about {memory['bytes'] / 2**30:.1f} GiB of "
            f"{memory['free'] / 2**30:.1f} GiB free memory, {memory['batch']}",
            f"{record['tokens']} tokens ({record['tokens_with_loss']} with loss, padding "
            f"{record['padding_share']:.1%})",
            *examples,
            f"tokens per example (the longest has {record['longest']}, the maximum is {record['max_length']}):",
            *bars,
        ]
    )


def measure_shape(student: Student, parameters: TrainParameters) -> Shape:
    """The student's sizes, from its configuration; no weights are read."""
    return shape_of(student.config(), parameters.four_bit, resolve_dtype(student.dtype))


def shape_of(config: Any, four_bit: bool, dtype: str) -> Shape:
    """The sizes of a model of this configuration in ``dtype``. Without a GPU 4-bit weights count as dequantized."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    head = model.get_output_embeddings()
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    linear = sum(layer.weight.numel() for layer in layers)
    activation, cuda = getattr(torch, dtype).itemsize, torch.cuda.is_available()
    widths = sum(layer.in_features + layer.out_features for layer in layers)
    total = sum(weights.numel() for weights in model.parameters())
    # NF4 with double quantization: 4.127 bits a weight (QLoRA, section 3).
    weights = int(linear * (4.127 / 8 if four_bit and cuda else activation)) + (total - linear) * activation
    process, stored = (0, 0) if cuda else (_PROCESS_BYTES, total * (config.dtype or torch.float32).itemsize)
    return Shape(
        total=total,
        linear=linear,
        head=head.weight.numel(),
        widths=widths,
        vocabulary=head.out_features,
        weights=weights,
        token=int(widths * activation * (1 if cuda else _KEPT_ON_CPU[activation])),
        process=process,
        loading=process + stored + weights,
        positions=count_learned_positions(model),
    )


def free_memory() -> int:
    """Bytes of memory for this process: on the GPU, or what it can still take and what it has already."""
    import psutil  # type: ignore[import-untyped]
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return available_memory() + int(psutil.Process().memory_info().rss)


def matrix_rate(dtype: str, seconds: float = 0.3) -> float:
    """Measure floating-point operations per second of a plain matrix product in ``dtype``."""
    import torch
    from torch.utils.benchmark import Timer

    device, size = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 768)
    matrix = torch.ones(size, size, dtype=getattr(torch, dtype), device=device)
    timer = Timer("matrix @ matrix", globals={"matrix": matrix}, num_threads=torch.get_num_threads())
    return 2.0 * size**3 / timer.blocked_autorange(min_run_time=seconds).mean


def _histogram(lengths: list[int]) -> list[tuple[int, int, int]]:
    """At most eight bins ``(from, to, examples)`` of equal width."""
    shortest, longest = min(lengths), max(lengths)
    width = math.ceil((longest - shortest + 1) / 8)
    bins = [(low, low + width - 1) for low in range(shortest, longest + 1, width)]
    return [(low, high, sum(low <= length <= high for length in lengths)) for low, high in bins]


def _show(tokenizer: "PreTrainedTokenizerBase", example: TokenizedExample, which: str) -> dict[str, Any]:
    """The example as text, tokens with loss between ⟦ and ⟧, and the position of its end of turn."""
    pairs = zip(example.input_ids, example.labels, strict=True)
    text = ""
    for has_loss, run in groupby(pairs, key=lambda pair: pair[1] != IGNORED):
        decoded = tokenizer.decode([token for token, _ in run])
        text += f"⟦{decoded}⟧" if has_loss else str(decoded)
    return {
        "which": which,
        "tokens": len(example),
        "tokens_with_loss": example.target_count,
        "end_of_turn_at": len(example) - 1,
        "text": text,
    }
