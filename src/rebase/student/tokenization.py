"""Examples as tokens: which are trained on, in which order."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd

from rebase.parameters import TrainParameters
from rebase.student.formatting import encode_example
from rebase.student.handle import Student

#: Why an example is not trained on: its target would be cut, and the student would learn not to stop.
TRUNCATED = "target_truncated"
#: Why an example is not trained on: the evaluation loss is measured on it.
VALIDATION = "validation"

# Batches that are sorted by length together: enough to save padding, few enough to keep the order random.
_BATCHES_SORTED = 8

Item = TypeVar("Item")


@dataclass(frozen=True)
class Example:
    """Token ids and labels, both ``[length]``; the labels of the prompt are ``IGNORED``."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Encoded:
    """The examples trained on, those held out for the evaluation loss, and how many were too long."""

    train: list[Example]
    validation: list[Example]
    truncated: int

    @property
    def rejected(self) -> dict[str, int]:
        """How many examples are not trained on, by reason."""
        reasons = {TRUNCATED: self.truncated, VALIDATION: len(self.validation)}
        return {reason: count for reason, count in reasons.items() if count}


def encode(student: Student, training_set: pd.DataFrame, parameters: TrainParameters) -> Encoded:
    """Tokenize ``training_set`` (columns ``prompt``, ``completion``) and set ``validation_share`` of it apart.

    What is held out is drawn by prompt, of those that are not too long: no prompt is on both sides.
    """
    tokenizer = student.tokenizer()
    encoded = [
        (prompt, Example(*encode_example(tokenizer, prompt, completion)))
        for prompt, completion in zip(training_set["prompt"], training_set["completion"], strict=True)
    ]
    fitting = [(prompt, example) for prompt, example in encoded if len(example.input_ids) <= parameters.max_length]
    prompts = sorted({prompt for prompt, _ in fitting})
    count = math.ceil(parameters.validation_share * len(prompts))
    draw = np.random.default_rng(parameters.seed)
    apart = {prompts[number] for number in draw.permutation(len(prompts))[:count]}
    return Encoded(
        [example for prompt, example in fitting if prompt not in apart],
        [example for prompt, example in fitting if prompt in apart],
        len(encoded) - len(fitting),
    )


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
    for group in chunks(seen[:total], _BATCHES_SORTED * batch_size):
        batches = chunks(sorted(group, key=lambda number: lengths[number]), batch_size)
        # Only the very last batch may be short: it stays last.
        full, short = [b for b in batches if len(b) == batch_size], [b for b in batches if len(b) < batch_size]
        draw.shuffle(full)
        ordered += [number for batch in full + short for number in batch]
    return ordered


def chunks(items: list[Item], size: int) -> list[list[Item]]:
    """The items in runs of ``size``; the last one may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]
