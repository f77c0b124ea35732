"""Answers of a fixed set, by their likelihood."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rebase.student.formatting import encode_example
from rebase.student.handle import float32_logits
from rebase.student.prefill import Batch, read_prompts

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


def choose_labels(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    labels: Sequence[str],
    batch_size: int,
    description: str,
) -> tuple[list[str], np.ndarray]:
    """The likeliest label after each rendered prompt, and the log-likelihoods ``[prompts, labels]`` (natural).

    That of a label is the sum over its tokens and the end of the turn, as the student was trained to write them: no
    correction for length, which the end makes needless. Logits, log-likelihoods and sums are float32 in every number
    format of the model. Of equal labels the first counts.
    """
    import torch

    targets = [encode_example(tokenizer, "", label)[0] for label in labels]
    scores = np.zeros((len(prompts), len(labels)))
    # The labels of so many prompts go through the model together that they are no more rows than a batch has.
    at_once = max(1, batch_size // len(labels))
    with torch.inference_mode(), float32_logits(model):
        for numbers, batch, logits in read_prompts(model, tokenizer, prompts, batch_size, description):
            scores[numbers] = logits.log_softmax(dim=-1)[:, [target[0] for target in targets]].cpu()
            for start in range(0, len(numbers), at_once):
                rows = range(start, min(start + at_once, len(numbers)))
                scores[numbers[start : start + at_once]] += _score_rest(batch, rows, targets).cpu().numpy()
    return [labels[place] for place in scores.argmax(axis=1)], scores


def _score_rest(batch: Batch, rows: Sequence[int], targets: list[list[int]]) -> "torch.Tensor":
    """Log-likelihoods ``[rows, targets]`` of all but the first token of each target, given the first."""
    import torch

    batch = batch.select([row for row in rows for _ in targets])
    width = max(map(len, targets)) - 1
    logits = batch.read([target[:-1] for target in targets] * len(rows), logits=width)
    said = torch.tensor([[-1] * (width - len(target) + 1) + target[1:] for target in targets], device=logits.device)
    said = said.repeat(len(rows), 1)
    found = logits.log_softmax(dim=-1).gather(-1, said.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return torch.where(said >= 0, found, 0.0).sum(dim=-1).view(len(rows), len(targets))
