"""Greedy generation in batches."""

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from rebase.student.prefill import PrefilledBatch, prefill

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

#: Called with the positions of prompts and the answers to them.
SaveAnswers = Callable[[Sequence[int], Sequence[str]], None]


def generate(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    description: str,
    save: SaveAnswers | None = None,
) -> list[str]:
    """Generate the greedy completion of each rendered prompt, in the order of the prompts.

    A completion stops at the end of its turn or after ``max_new_tokens``. A repetition penalty in the model's
    ``generation_config`` is not applied. ``save`` is called with each finished batch.
    """
    import torch

    end_ids = end_tokens(model, tokenizer)
    texts = [""] * len(prompts)
    with torch.inference_mode():
        for positions, batch, logits in prefill(model, tokenizer, prompts, batch_size, description):
            token_ids = _decode(batch, logits, max_new_tokens, end_ids)
            answers = [text.strip() for text in tokenizer.batch_decode(token_ids, skip_special_tokens=True)]
            for position, answer in zip(positions, answers, strict=True):
                texts[position] = answer
            if save:
                save(positions, answers)
    return texts


def end_tokens(model: Any, tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """The ids that end an answer: the tokenizer's, which training uses, and those of the model's configuration."""
    configured = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])} - {None}


def _decode(
    batch: PrefilledBatch, logits: "torch.Tensor", max_new_tokens: int, end_ids: Collection[int]
) -> list[list[int]]:
    """The next tokens of each row, from the logits ``[rows, vocabulary]`` on. Rows that end leave the batch."""
    rows: list[list[int]] = [[] for _ in range(len(logits))]
    active = rows
    while True:
        for row, token in zip(active, logits.argmax(dim=-1).tolist(), strict=True):
            row.append(token)
        unfinished = [index for index, row in enumerate(active) if row[-1] not in end_ids]
        if not unfinished or len(active[0]) == max_new_tokens:
            return rows
        if len(unfinished) < len(active):
            batch, active = batch.select(unfinished), [active[index] for index in unfinished]
        logits = batch.extend([row[-1:] for row in active])[:, -1]
