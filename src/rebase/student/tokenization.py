"""Tokenized training examples, the validation split, and the order of training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd

from rebase.parameters import TrainParameters
from rebase.student.formatting import IGNORED, tokenize_example
from rebase.student.handle import Student

#: Rejection: the target would be cut, and the student would not learn to stop.
TRUNCATED = "target_truncated"
#: Rejection: the example belongs to the validation split.
VALIDATION = "validation"

# This many steps are sorted by length together: enough to save padding, few enough for a random order.
_STEPS_SORTED = 8
# `validation_share: auto`.
_VALIDATION_SHARE, _ENOUGH_TO_VALIDATE = 0.1, 200

T = TypeVar("T")


@dataclass(frozen=True)
class TokenizedExample:
    """Token ids and labels, both ``[length]``; the labels of the prompt are ``IGNORED``."""

    input_ids: list[int]
    labels: list[int]

    @property
    def target_count(self) -> int:
        """How many tokens have loss; the very first token is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class TokenizedExamples:
    """The training examples, the validation examples, and how many were too long."""

    train: list[TokenizedExample]
    validation: list[TokenizedExample]
    truncated: int

    @property
    def rejected(self) -> dict[str, int]:
        """How many examples are not trained on, by reason."""
        reasons = {TRUNCATED: self.truncated, VALIDATION: len(self.validation)}
        return {reason: count for reason, count in reasons.items() if count}


def tokenize(student: Student, training_set: pd.DataFrame, parameters: TrainParameters) -> TokenizedExamples:
    """Tokenize ``training_set`` (columns ``prompt``, ``completion``) and split off ``validation_share`` of it.

    The split draws prompts whose examples are not too long: no prompt is on both sides.
    """
    tokenizer = student.tokenizer()
    examples = [
        (prompt, TokenizedExample(*tokenize_example(tokenizer, prompt, completion)))
        for prompt, completion in zip(training_set["prompt"], training_set["completion"], strict=True)
    ]
    fitting = [(prompt, example) for prompt, example in examples if len(example) <= parameters.max_length]
    prompts = sorted({prompt for prompt, _ in fitting})
    share = parameters.validation_share
    if share == "auto":
        share = _VALIDATION_SHARE if len(prompts) >= _ENOUGH_TO_VALIDATE else 0.0
    count = math.ceil(share * len(prompts))
    draw = np.random.default_rng(parameters.seed)
    validation = {prompts[index] for index in draw.permutation(len(prompts))[:count]}
    return TokenizedExamples(
        [example for prompt, example in fitting if prompt not in validation],
        [example for prompt, example in fitting if prompt in validation],
        len(examples) - len(fitting),
    )


def order_examples(lengths: Sequence[int], epochs: float, step_size: int, seed: int) -> list[int]:
    """The order of training on examples of these lengths, all epochs in one list; steps have similar lengths.

    The seed fixes it, so that a resumed run sees what an uninterrupted one sees. Each epoch draws every example once; a
    part of an epoch draws a random part of them. Steps around the end of an epoch are sorted together, so that one of
    them can have an example of both epochs twice.
    """
    draw = np.random.default_rng(seed)
    drawn: list[int] = []
    total = max(1, round(epochs * len(lengths)))
    while len(drawn) < total:
        drawn += draw.permutation(len(lengths)).tolist()
    ordered: list[int] = []
    # No more than an epoch together: steps of a small set would have its examples two or three times.
    group_size = min(_STEPS_SORTED, max(1, len(lengths) // step_size)) * step_size
    for group in chunks(drawn[:total], group_size):
        steps = chunks(sorted(group, key=lambda index: lengths[index]), step_size)
        # Only the very last step may be short: it stays last.
        full, short = [s for s in steps if len(s) == step_size], [s for s in steps if len(s) < step_size]
        draw.shuffle(full)
        ordered += [index for step in full + short for index in step]
    return ordered


def chunks(items: list[T], size: int) -> list[list[T]]:
    """The items in lists of ``size``; the last one may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]
