"""Greedy generation in batches."""

import copy
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from rebase.student.formatting import encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def generate(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    description: str,
) -> list[str]:
    """What the model writes after each rendered prompt, greedily, in the order of the prompts.

    Prompts of like length share a batch; what all prompts begin with (the instruction) goes through the model once.
    Each text stops at the end of its turn or after ``max_new_tokens``.
    """
    import torch
    from tqdm.auto import tqdm

    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    # Longest first: a batch that does not fit the memory shows at once.
    order = sorted(range(len(encoded)), key=lambda number: -len(encoded[number]))
    texts = [""] * len(encoded)
    with torch.inference_mode(), tqdm(total=len(order), desc=description, unit="item") as bar:
        writer = _Writer(model, tokenizer, encoded, max_new_tokens)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            for number, text in zip(chosen, writer.write([encoded[n] for n in chosen]), strict=True):
                texts[number] = text
            bar.update(len(chosen))
    return texts


class _Writer:
    """Greedy generation with the keys and values of the shared beginning computed once."""

    def __init__(self, model: Any, tokenizer: Any, prompts: list[list[int]], max_new_tokens: int) -> None:
        import torch
        from transformers import DynamicCache, GenerationConfig

        self._model, self._tokenizer = model, tokenizer
        self._settings = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=_end_ids(model, tokenizer),
            pad_token_id=tokenizer.pad_token_id,
        )
        # One token of each prompt is left to the batch: it says what comes next.
        columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
        self._shared = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
        self._cache = DynamicCache(config=model.config)
        if self._shared:
            ids = torch.tensor([self._shared], device=model.device)
            model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)

    def write(self, prompts: list[list[int]]) -> list[str]:
        """What follows each prompt. The padding stands between the shared beginning and the rest, and is masked."""
        import torch

        rests = [prompt[len(self._shared) :] for prompt in prompts]
        batch = self._tokenizer.pad({"input_ids": rests}, padding_side="left", return_tensors="pt")
        shared = torch.tensor([self._shared], dtype=torch.long).expand(len(prompts), -1)
        ids = torch.cat([shared, batch["input_ids"]], dim=1).to(self._model.device)
        mask = torch.cat([torch.ones_like(shared), batch["attention_mask"]], dim=1).to(self._model.device)
        cache = copy.deepcopy(self._cache)
        if self._shared:
            cache.batch_repeat_interleave(len(prompts))
        written = self._model.generate(
            input_ids=ids, attention_mask=mask, past_key_values=cache, generation_config=self._settings
        )[:, ids.shape[1] :]
        return [text.strip() for text in self._tokenizer.batch_decode(written, skip_special_tokens=True)]


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a turn: the one trained on, and those the model names itself."""
    named = model.generation_config.eos_token_id
    own = named if isinstance(named, list) else [] if named is None else [named]
    return sorted({tokenizer.eos_token_id, *own})
