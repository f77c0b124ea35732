"""Answers from a fixed set of labels, by likelihood."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rebase.student.formatting import tokenize_example
from rebase.student.handle import float32_logits
from rebase.student.prefill import PrefilledBatch, prefill

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
    """The most likely label of each rendered prompt, and the log-likelihoods ``[prompts, labels]`` (natural).

    A label's log-likelihood is the sum over its tokens and the end of the turn, as the student was trained to write
    them. There is no correction for length: the end of the turn makes it unnecessary. All of it is computed in float32
    in any number format of the model. The first of equally likely labels wins.
    """
    import torch

    targets = [tokenize_example(tokenizer, "", label)[0] for label in labels]
    scores = np.zeros((len(prompts), len(labels)))
    # Score the labels of several prompts together, with at most ``batch_size`` rows.
    prompts_at_once = max(1, batch_size // len(labels))
    with torch.inference_mode(), float32_logits(model):
        for positions, batch, logits in prefill(model, tokenizer, prompts, batch_size, description):
            scores[positions] = logits.log_softmax(dim=-1)[:, [target[0] for target in targets]].cpu()
            for start in range(0, len(positions), prompts_at_once):
                rows = range(start, min(start + prompts_at_once, len(positions)))
                scores[positions[start : rows.stop]] += _score_rest(batch, rows, targets).cpu().numpy()
    return [labels[index] for index in scores.argmax(axis=1)], scores


def _score_rest(batch: PrefilledBatch, rows: Sequence[int], targets: list[list[int]]) -> "torch.Tensor":
    """Log-likelihoods ``[rows, targets]`` of all but the first token of each target, given the first."""
    import torch

    batch = batch.select([row for row in rows for _ in targets])
    width = max(map(len, targets)) - 1
    # Padding on the right: no token attends to it, and a sliding window before it has the prompt.
    given = [target[:-1] + [0] * (width - len(target) + 1) for target in targets]
    logits = batch.extend(given * len(rows), logits=width)
    padded = [target[1:] + [-1] * (width - len(target) + 1) for target in targets]
    token_ids = torch.tensor(padded, device=logits.device).repeat(len(rows), 1)
    likelihoods = logits.log_softmax(dim=-1).gather(-1, token_ids.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return torch.where(token_ids >= 0, likelihoods, 0.0).sum(dim=-1).view(len(rows), len(targets))
