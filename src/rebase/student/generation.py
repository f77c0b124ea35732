"""Greedy generation in batches."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from rebase.student.answer_cache import SaveAnswers
from rebase.student.prefill import Batch, read_prompts

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


def generate(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    description: str,
    save: SaveAnswers | None = None,
) -> list[str]:
    """What the model writes after each rendered prompt, greedily, in the order of the prompts.

    Each text stops at the end of its turn or after ``max_new_tokens``. The likeliest token is taken as it is: a
    repetition penalty that a model's ``generation_config`` asks for is left out. ``save`` is called with
    each finished batch.
    """
    import torch

    ends = _end_ids(model, tokenizer)
    texts = [""] * len(prompts)
    with torch.inference_mode():
        for numbers, batch, logits in read_prompts(model, tokenizer, prompts, batch_size, description):
            written = _write(batch, logits, max_new_tokens, ends)
            answers = [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
            for number, text in zip(numbers, answers, strict=True):
                texts[number] = text
            if save:
                save(numbers, answers)
    return texts


def _write(batch: Batch, logits: "torch.Tensor", max_new_tokens: int, ends: Collection[int]) -> list[list[int]]:
    """The tokens that follow in each row, from the logits ``[rows, vocabulary]`` on. Rows that end leave the batch."""
    written: list[list[int]] = [[] for _ in range(len(logits))]
    active = written
    while True:
        for tokens, token in zip(active, logits.argmax(dim=-1).tolist(), strict=True):
            tokens.append(token)
        going = [row for row, tokens in enumerate(active) if tokens[-1] not in ends]
        if not going or len(active[0]) == max_new_tokens:
            return written
        if len(going) < len(active):
            batch, active = batch.select(going), [active[row] for row in going]
        logits = batch.read([tokens[-1:] for tokens in active])[:, -1]


def _end_ids(model: Any, tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Tokens that end a turn: the one trained on, and those the model names itself."""
    named = model.generation_config.eos_token_id
    own = named if isinstance(named, list) else [] if named is None else [named]
    return {tokenizer.eos_token_id, *own}
