"""What training is about to do: looked at, estimated and checked before the first step."""

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rebase.errors import RebaseError
from rebase.parameters import TrainParameters
from rebase.student.formatting import IGNORED
from rebase.student.handle import Student
from rebase.student.tokenization import Encoded, Example, chunks, order_examples
from rebase.weights import locate_model, resolve_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Of the measured matrix rate, the share that training is taken to reach; the rest goes to attention and small steps.
_MATRIX_SHARE = 0.5
# Bytes of a trained number: weight, gradient and AdamW's two moments, in float32.
_TRAINED_BYTES = 16
_SHOWN = 240  # characters of a prompt's end in the log


@dataclass(frozen=True)
class Shape:
    """What a student's cost follows from. ``linear``: weights that LoRA stands beside; ``head``: the output matrix.

    ``widths`` sums inputs and outputs of the linear layers: about the numbers that a token leaves for the backward
    pass (measured on Llama's architecture: 0.99 of it). ``weights`` and ``activation`` are bytes, of the frozen
    weights and of one number of an activation.
    """

    linear: int
    head: int
    widths: int
    vocabulary: int
    weights: int
    activation: int

    def memory(self, rank: int, tokens: int, targets: int) -> int:
        """Bytes at the peak: weights, adapter with optimizer, and what one pass of these tokens leaves."""
        passing = tokens * self.widths * self.activation + 3 * 4 * targets * self.vocabulary
        return self.weights + _TRAINED_BYTES * rank * self.widths + passing

    def operations(self, tokens: int, targets: int) -> int:
        """Floating-point operations of forward and backward; frozen weights have no gradient of their own."""
        return 4 * (self.linear * tokens + self.head * targets)


def check_examples(encoded: Encoded, tokenizer: "PreTrainedTokenizerBase", parameters: TrainParameters) -> None:
    """Raise RebaseError where nothing good can be learned: all cut, no loss, no end of turn, less than a batch."""
    count, needed = len(encoded.train), parameters.batch_size * parameters.gradient_accumulation
    if not count and encoded.truncated:
        raise RebaseError(
            f"train: all {encoded.truncated} targets would be cut: every example is longer than train.max_length = "
            f"{parameters.max_length} tokens. Raise train.max_length."
        )
    if tokenizer.eos_token_id is None:
        raise RebaseError(
            "train: the student's tokenizer has no end-of-text token (eos_token), so the student would never learn to "
            "stop. Set `eos_token` in its tokenizer_config.json, or choose another student.model."
        )
    silent = sum(not target_count(example) for example in encoded.train)
    if silent:
        raise RebaseError(
            f"train: {silent} of {count} examples have no token that carries loss: their completions are empty. "
            "Look at training_set and at the student's chat template."
        )
    endless = sum(example.labels[-1] != tokenizer.eos_token_id for example in encoded.train)
    if endless:
        raise RebaseError(
            f"train: {endless} of {count} targets do not end on {tokenizer.eos_token!r}, so the student would "
            "not learn to stop. Look at training_set and at the student's chat template."
        )
    if count < needed:
        lost = f" (not counting {encoded.rejected})" if encoded.rejected else ""
        raise RebaseError(
            f"train: there are {count} training examples{lost}, fewer than one batch of {needed} "
            f"(train.batch_size {parameters.batch_size} x train.gradient_accumulation "
            f"{parameters.gradient_accumulation}). Look at examples_rejected and retrieval_rejected for what was lost; "
            "raise retrieve.top_n, transform.max_examples or train.max_length, or make the batch smaller."
        )


def inspect(
    encoded: Encoded, tokenizer: "PreTrainedTokenizerBase", parameters: TrainParameters, shape: Shape, rate: float
) -> dict[str, Any]:
    """The record of what is about to be trained, fit for JSON; ``rate`` is in floating-point operations a second.

    Raises RebaseError where nothing good can be learned.
    """
    check_examples(encoded, tokenizer, parameters)
    examples = encoded.train
    lengths = [len(example.input_ids) for example in examples]
    order = order_examples(lengths, parameters.epochs, parameters.batch_size, parameters.seed)
    batches = chunks(order, parameters.batch_size)
    tokens = sum(lengths[number] for number in order)
    laid = sum(len(batch) * max(lengths[number] for number in batch) for batch in batches)
    targets = sum(target_count(examples[number]) for number in order)
    largest = max(batches, key=lambda batch: len(batch) * max(lengths[number] for number in batch))
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    return {
        "in": len(examples) + sum(encoded.rejected.values()),
        "kept": len(examples),
        "rejected": encoded.rejected,
        "steps": math.ceil(len(order) / (parameters.batch_size * parameters.gradient_accumulation)),
        "epochs": parameters.epochs,
        "tokens": tokens,
        "tokens_with_loss": targets,
        "padding_share": 0.0 if parameters.packing else round(1 - tokens / laid, 4),
        "lengths": _histogram(lengths),
        "longest": max(lengths),
        "max_length": parameters.max_length,
        "end_of_turn": {"token": str(tokenizer.eos_token), "id": tokenizer.eos_token_id, "examples": len(examples)},
        "examples": [
            _show(tokenizer, examples[number], which) for which, number in (("first", 0), ("longest", longest))
        ],
        "memory": {
            "bytes": shape.memory(
                parameters.lora.rank,
                len(largest) * max(lengths[number] for number in largest),
                sum(target_count(examples[number]) for number in largest),
            ),
            "how": "weights, adapter with optimizer, and what the largest batch leaves for the backward pass",
        },
        "time": {
            "seconds": round(shape.operations(tokens, targets) / (rate * _MATRIX_SHARE)),
            "how": f"operations at {_MATRIX_SHARE:.0%} of {rate / 1e9:,.0f} GFLOP/s, measured on a matrix product "
            "here; the log corrects it after the first steps",
        },
    }


def describe(record: dict[str, Any]) -> str:
    """The record as a few lines for the log; what carries loss stands between ⟦ and ⟧."""
    widest = max(count for _, _, count in record["lengths"])
    shown = [
        f"{example['which']} ({example['tokens']} tokens, {example['tokens_with_loss']} with loss, end of turn at "
        f"{example['end_of_turn_at']}): …{example['text'][-_SHOWN:]!r}"
        for example in record["examples"]
    ]
    bars = [
        f"{low:>6}–{high:<6}{count:>6} {'█' * round(24 * count / widest)}".rstrip()
        for low, high, count in record["lengths"]
    ]
    lost = f" (not trained on: {record['rejected']})" if record["rejected"] else ""
    return "\n".join(
        [
            f"train, before the first step: {record['kept']} of {record['in']} examples{lost}, {record['steps']} steps",
            f"{record['tokens']} tokens ({record['tokens_with_loss']} with loss, padding "
            f"{record['padding_share']:.1%}), about {record['memory']['bytes'] / 2**30:.1f} GiB and "
            f"{record['time']['seconds'] / 60:.1f} min",
            *shown,
            f"tokens an example (the longest {record['longest']}, allowed {record['max_length']}):",
            *bars,
        ]
    )


def measure_shape(student: Student, parameters: TrainParameters) -> Shape:
    """The student's sizes, from its configuration; no weights are read."""
    from transformers import AutoConfig

    folder = locate_model(student.model, student.folder)
    config = AutoConfig.from_pretrained(folder, revision=student.revision or "main")
    return shape_of(config, parameters.four_bit, resolve_dtype(student.dtype))


def shape_of(config: Any, four_bit: bool, dtype: str) -> Shape:
    """The sizes of a model of this configuration in ``dtype``. Without a GPU the frozen weights count as decoded."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    head = model.get_output_embeddings()
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    linear = sum(layer.weight.numel() for layer in layers)
    activation = getattr(torch, dtype).itemsize
    packed = four_bit and torch.cuda.is_available()
    rest = sum(weights.numel() for weights in model.parameters()) - linear
    return Shape(
        linear=linear,
        head=head.weight.numel(),
        widths=sum(layer.in_features + layer.out_features for layer in layers),
        vocabulary=head.out_features,
        # NF4 with double quantization: 4.127 bits a weight (QLoRA, section 3).
        weights=int(linear * (4.127 / 8 if packed else activation)) + rest * activation,
        activation=activation,
    )


def matrix_rate(dtype: str, seconds: float = 0.3) -> float:
    """Floating-point operations a second of a plain matrix product in ``dtype``, the number format of training."""
    import torch

    cuda = torch.cuda.is_available()
    size = 8192 if cuda else 768
    matrix = torch.ones(size, size, dtype=getattr(torch, dtype), device="cuda" if cuda else "cpu")
    count = 0
    matrix @ matrix  # the first one prepares
    synchronize = torch.cuda.synchronize if cuda else int
    synchronize()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        matrix @ matrix
        synchronize()
        count += 1
    return 2.0 * size**3 * count / (time.perf_counter() - began)


def target_count(example: Example) -> int:
    """How many tokens carry loss; the first one of all is predicted from nothing."""
    return sum(label != IGNORED for label in example.labels[1:])


def _histogram(lengths: list[int]) -> list[tuple[int, int, int]]:
    """At most eight bins ``(from, to, examples)`` of one width."""
    shortest, longest = min(lengths), max(lengths)
    width = math.ceil((longest - shortest + 1) / 8)
    bins = [(low, low + width - 1) for low in range(shortest, longest + 1, width)]
    return [(low, high, sum(low <= length <= high for length in lengths)) for low, high in bins]


def _show(tokenizer: "PreTrainedTokenizerBase", example: Example, which: str) -> dict[str, Any]:
    """The example as text, every token that carries loss between ⟦ and ⟧, and where its end of turn is."""
    runs: list[tuple[bool, list[int]]] = []
    for token, label in zip(example.input_ids, example.labels, strict=True):
        counts = label != IGNORED
        if not runs or runs[-1][0] != counts:
            runs.append((counts, []))
        runs[-1][1].append(token)
    texts = [(counts, str(tokenizer.decode(tokens))) for counts, tokens in runs]
    return {
        "which": which,
        "tokens": len(example.input_ids),
        "tokens_with_loss": target_count(example),
        "end_of_turn_at": len(example.labels) - 1 - example.labels[::-1].index(tokenizer.eos_token_id),
        "text": "".join(f"⟦{text}⟧" if counts else text for counts, text in texts),
    }
