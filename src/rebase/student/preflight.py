"""Checks and estimates before the first training step."""

import logging
import math
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.parameters import TrainParameters
from rebase.student.formatting import IGNORED
from rebase.student.handle import Student
from rebase.student.learning_rate import choose_learning_rate
from rebase.student.tokenization import TokenizedExample, TokenizedExamples, chunks, order_examples, tokenize
from rebase.weights import resolve_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# The share of the measured matrix rate that training is assumed to reach; the rest goes to attention and small steps.
_MATRIX_SHARE = 0.5
# Bytes of a trained number: weight, gradient and AdamW's two moments, in float32.
_TRAINED_BYTES = 16
_LOGGED_CHARACTERS = 240  # of the end of an example


@dataclass(frozen=True)
class Shape:
    """The sizes that determine a student's cost.

    ``total`` counts all weights, ``linear`` those of the layers with LoRA, ``head`` those of the output matrix.
    ``widths`` sums inputs and outputs of the linear layers: about the numbers that a token needs for the backward pass
    (measured on Llama's architecture: 0.99 of it). ``weights`` and ``activation`` are bytes, of the frozen weights and
    of one number of an activation.
    """

    total: int
    linear: int
    head: int
    widths: int
    vocabulary: int
    weights: int
    activation: int

    def memory(self, rank: int, tokens: int, targets: int) -> int:
        """Bytes at the peak: weights, adapter with optimizer, and what one pass of these tokens needs."""
        passing = tokens * self.widths * self.activation + 3 * 4 * targets * self.vocabulary
        return self.weights + _TRAINED_BYTES * rank * self.widths + passing

    def operations(self, tokens: int, targets: int) -> int:
        """Floating-point operations of forward and backward pass; frozen weights need no gradient."""
        return 4 * (self.linear * tokens + self.head * targets)


def first_learning_rate(parameters: TrainParameters, shape: Shape) -> float:
    """The learning rate of the settings, or by the student's size if it is ``auto``."""
    return choose_learning_rate(shape.total) if parameters.learning_rate == "auto" else parameters.learning_rate


def check_examples(
    tokenized: TokenizedExamples, tokenizer: "PreTrainedTokenizerBase", parameters: TrainParameters
) -> None:
    """Raise RebaseError if nothing can be learned: all cut, no loss, no end of turn, or less than a batch."""
    count, needed = len(tokenized.train), parameters.batch_size * parameters.gradient_accumulation
    if not count and tokenized.truncated:
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
    if count < needed:
        rejected = f" (not counting {tokenized.rejected})" if tokenized.rejected else ""
        raise RebaseError(
            f"train: there are {count} training examples{rejected}, fewer than one batch of {needed} "
            f"(train.batch_size {parameters.batch_size} x train.gradient_accumulation "
            f"{parameters.gradient_accumulation}). See examples_rejected and retrieval_rejected for the reasons; raise "
            "retrieve.top_n, transform.max_examples or train.max_length, or lower train.batch_size."
        )


def inspect_training(training_set: pd.DataFrame, student: Student, parameters: TrainParameters) -> dict[str, Any]:
    """Check and estimate the planned training, and log it.

    Returns the ``preflight`` record. Raises RebaseError if nothing can be learned from the examples.
    """
    tokenized = tokenize(student, training_set, parameters)
    shape = measure_shape(student, parameters)
    record = inspect(tokenized, student.tokenizer(), parameters, shape, matrix_rate(resolve_dtype(student.dtype)))
    summary, _, details = describe(record).partition("\n")
    logger.info("%s", summary)
    logger.debug("%s", details)
    return record


def inspect(
    tokenized: TokenizedExamples,
    tokenizer: "PreTrainedTokenizerBase",
    parameters: TrainParameters,
    shape: Shape,
    rate: float,
) -> dict[str, Any]:
    """A record of the planned training, fit for JSON; ``rate`` is in floating-point operations per second.

    Raises RebaseError if nothing can be learned.
    """
    check_examples(tokenized, tokenizer, parameters)
    examples = tokenized.train
    lengths = list(map(len, examples))
    order = order_examples(lengths, parameters.epochs, parameters.batch_size, parameters.seed)
    batches = [[examples[index] for index in batch] for batch in chunks(order, parameters.batch_size)]
    padded_sizes = [len(batch) * max(map(len, batch)) for batch in batches]
    largest = max(range(len(batches)), key=padded_sizes.__getitem__)
    tokens = sum(lengths[index] for index in order)
    targets = sum(examples[index].target_count for index in order)
    batch_targets = sum(example.target_count for example in batches[largest])
    return {
        "in": len(examples) + sum(tokenized.rejected.values()),
        "kept": len(examples),
        "rejected": tokenized.rejected,
        "learning_rate": first_learning_rate(parameters, shape),
        "steps": math.ceil(len(order) / (parameters.batch_size * parameters.gradient_accumulation)),
        "epochs": parameters.epochs,
        "tokens": tokens,
        "tokens_with_loss": targets,
        "padding_share": 0.0 if parameters.packing else round(1 - tokens / sum(padded_sizes), 4),
        "lengths": _histogram(lengths),
        "longest": max(lengths),
        "max_length": parameters.max_length,
        "end_of_turn": {"token": str(tokenizer.eos_token), "id": tokenizer.eos_token_id, "examples": len(examples)},
        "examples": [_show(tokenizer, examples[0], "first"), _show(tokenizer, max(examples, key=len), "longest")],
        "memory": {
            "bytes": shape.memory(parameters.lora.rank, padded_sizes[largest], batch_targets),
            "how": "weights, adapter with optimizer, and the activations of the largest batch",
        },
        "time": {
            "seconds": round(shape.operations(tokens, targets) / (rate * _MATRIX_SHARE)),
            "how": f"operations at {_MATRIX_SHARE:.0%} of {rate / 1e9:,.0f} GFLOP/s, measured on a matrix product "
            "here; the progress bar has a better estimate after the first steps",
        },
    }


def describe(record: dict[str, Any]) -> str:
    """The record as a line for the log and more lines with details; tokens with loss are between ⟦ and ⟧."""
    highest = max(count for _, _, count in record["lengths"])
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
            f"train: {record['kept']} of {record['in']} examples{rejected}, {record['steps']} steps, learning rate "
            f"{record['learning_rate']:g}, about {record['memory']['bytes'] / 2**30:.1f} GiB and "
            f"{record['time']['seconds'] / 60:.1f} min",
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
    activation = getattr(torch, dtype).itemsize
    packed = four_bit and torch.cuda.is_available()
    total = sum(weights.numel() for weights in model.parameters())
    return Shape(
        total=total,
        linear=linear,
        head=head.weight.numel(),
        widths=sum(layer.in_features + layer.out_features for layer in layers),
        vocabulary=head.out_features,
        # NF4 with double quantization: 4.127 bits a weight (QLoRA, section 3).
        weights=int(linear * (4.127 / 8 if packed else activation)) + (total - linear) * activation,
        activation=activation,
    )


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
