"""Prompts through the model in batches: what several of them begin with is read once."""

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rebase.student.formatting import encode_prompt
from rebase.text import common_prefix_length

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

#: Prompts belong together (questions about one passage) where they share so many tokens that not all of them share.
MIN_SHARED_TOKENS = 16


class Batch:
    """Rows of tokens that the model has read: their keys and values, and the mask ``[rows, length]`` of padding."""

    def __init__(self, model: Any, cache: Any = None, mask: Any = None) -> None:
        import torch
        from transformers import DynamicCache

        self._model = model
        self._cache = DynamicCache(config=model.config) if cache is None else cache
        self._mask = torch.ones((1, 0), dtype=torch.long, device=model.device) if mask is None else mask

    def select(self, rows: Sequence[int]) -> "Batch":
        """A new batch of these rows; one that is named twice stands there twice. This one stays as it is."""
        import torch

        chosen = torch.tensor(rows, device=self._mask.device)
        cache = copy.copy(self._cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]  # their tensors are replaced, never written to
        cache.batch_select_indices(chosen)
        return Batch(self._model, cache, self._mask[chosen])

    def read(self, tokens: Sequence[Sequence[int]], logits: int = 1) -> "torch.Tensor":
        """Go on in every row with its tokens, padded on the left; ``[rows, logits, vocabulary]`` of the last columns.

        The padding stands between what was read before and these tokens, and is masked.
        """
        import torch

        width = max(map(len, tokens))
        ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in tokens], device=self._mask.device)
        new = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in tokens], device=self._mask.device)
        self._mask = torch.cat([self._mask, new], dim=1)
        return self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=(self._mask.cumsum(-1) - 1).clamp(min=0)[:, -width:],
            cache=self._cache,
            use_cache=True,
            logits_to_keep=logits,
        ).logits


def read_prompts(
    model: Any, tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], batch_size: int, description: str
) -> Iterator[tuple[list[int], Batch, "torch.Tensor"]]:
    """Read rendered prompts, ``batch_size`` at a time: their places, the batch, and ``[rows, vocabulary]`` logits.

    What all prompts begin with (the instruction) is read once, what some of a batch begin with (a passage) once a
    batch. Prompts of like length share a batch, the longest first: a batch that does not fit the memory shows at once.
    To be used under ``torch.inference_mode``.
    """
    from tqdm.auto import tqdm

    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    shared = _common([encoded])[0] if encoded else []
    beginning = Batch(model)
    if shared:
        beginning.read([shared])
    rests = [tokens[len(shared) :] for tokens in encoded]
    groups = sorted(group_prompts(rests), key=lambda group: -max(len(rests[number]) for number in group))
    order = [number for group in groups for number in group]
    with tqdm(total=len(order), desc=description, unit="item") as bar:
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            yield numbers, *_read_batch(beginning, [rests[number] for number in numbers])
            bar.update(len(numbers))


def group_prompts(prompts: Sequence[list[int]]) -> list[list[int]]:
    """The places of the prompts, those that begin with the same passage in one group."""
    order = sorted(range(len(prompts)), key=lambda number: prompts[number])
    groups: list[list[int]] = []
    for number in order:
        if groups and common_prefix_length([prompts[groups[-1][-1]], prompts[number]]) >= MIN_SHARED_TOKENS:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def _read_batch(beginning: Batch, prompts: list[list[int]]) -> tuple[Batch, "torch.Tensor"]:
    """Read what groups begin with, and then the rest of each prompt, where that is less than reading all at once."""
    groups = group_prompts(prompts)
    heads = _common([[prompts[number] for number in group] for group in groups])
    group_of = {number: place for place, group in enumerate(groups) for number in group}
    tails = max((len(prompts[n]) - len(heads[g]) for n, g in group_of.items() if len(groups[g]) > 1), default=0)
    # A prompt that stands alone is cut so that its rest is no longer than the others'.
    heads = [
        head if len(group) > 1 else head[: max(0, len(prompts[group[0]]) - tails)]
        for head, group in zip(heads, groups, strict=True)
    ]
    apart = len(groups) * max(map(len, heads)) + len(prompts) * tails
    if not tails or apart >= len(prompts) * max(map(len, prompts)):
        batch = beginning.select([0] * len(prompts))
        return batch, batch.read(prompts)[:, -1]
    begun = beginning.select([0] * len(groups))
    begun.read(heads)
    batch = begun.select([group_of[number] for number in range(len(prompts))])
    rests = [tokens[len(heads[group_of[number]]) :] for number, tokens in enumerate(prompts)]
    return batch, batch.read(rests)[:, -1]


def _common(groups: Sequence[Sequence[list[int]]]) -> list[list[int]]:
    """What the prompts of each group begin with. One token of each is left: it says what comes next."""
    return [group[0][: common_prefix_length([tokens[:-1] for tokens in group])] for group in groups]
