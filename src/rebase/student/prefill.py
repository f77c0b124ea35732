"""Prompts through the model in batches; a beginning that prompts share is computed once.

The only module that relies on how transformers caches keys and values: ``DynamicCache`` has a list ``layers`` whose
tensors are replaced. The states of linear attention are written to, in the copies that ``reorder_cache`` makes (see
tests/student/test_prefill.py).
"""

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rebase.errors import RebaseError
from rebase.student.formatting import tokenize_prompt
from rebase.text import common_prefix_length
from rebase.weights import ignores_padding

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

#: Prompts are grouped (questions about one passage) if they share this many tokens beyond those that all prompts share.
MIN_SHARED_TOKENS = 16


class PrefilledBatch:
    """Rows of tokens that the model has processed: keys and values, and the mask ``[rows, length]`` of padding."""

    def __init__(self, model: Any) -> None:
        """One row without tokens."""
        import torch
        from transformers import DynamicCache

        self._model = model
        self._limit = count_learned_positions(model)
        self._cache = DynamicCache(config=model.config)
        self._mask = torch.ones((1, 0), dtype=torch.long, device=model.device)

    @property
    def can_share(self) -> bool:
        """Whether rows of different lengths may follow a beginning that they share."""
        return ignores_padding(self._cache)

    def select(self, rows: Sequence[int]) -> "PrefilledBatch":
        """A new batch of these rows, which may repeat. This batch does not change."""
        import torch

        indices = torch.tensor(rows, device=self._mask.device)
        batch = copy.copy(self)
        batch._mask = self._mask[indices]
        batch._cache = copy.copy(self._cache)
        batch._cache.layers = [_copy_layer(layer) for layer in self._cache.layers]
        batch._cache.reorder_cache(indices)  # type: ignore[arg-type]
        return batch

    def extend(self, tokens: Sequence[Sequence[int]], logits: int = 1) -> "torch.Tensor":
        """Process more tokens of every row, padded on the left; logits ``[rows, logits, vocabulary]`` of the last.

        The padding lies between the earlier tokens and these, and is masked (see ``can_share``). Raises RebaseError if
        a row becomes longer than the model can read.
        """
        import torch

        width = max(map(len, tokens))
        ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in tokens], device=self._mask.device)
        new = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in tokens], device=self._mask.device)
        self._mask = torch.cat([self._mask, new], dim=1)
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -width:]
        if self._limit and int(positions.max()) >= self._limit:
            raise RebaseError(
                f"The student reads at most {self._limit} tokens, and a prompt with its answer has more. Set another "
                "`student.model` in globals.yml, or shorten the task's examples, its evaluation items or "
                "`max_new_tokens`."
            )
        return self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            cache=self._cache,
            use_cache=True,
            logits_to_keep=logits,
        ).logits


def prefill(
    model: Any, tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], batch_size: int, description: str
) -> Iterator[tuple[list[int], PrefilledBatch, "torch.Tensor"]]:
    """Process rendered prompts in batches: positions of the prompts, the batch, and ``[rows, vocabulary]`` logits.

    The beginning of all prompts (the instruction) is computed once, a beginning that some of a batch share (a passage)
    once per batch, if the model can share them (``ignores_padding``). Prompts of similar length share a batch, the
    longest first: a batch that does not fit into memory fails at once. Use it under ``torch.inference_mode``.
    """
    from tqdm.auto import tqdm

    tokenized = [tokenize_prompt(tokenizer, prompt) for prompt in prompts]
    beginning = PrefilledBatch(model)
    shared = _common_prefix(tokenized) if tokenized and beginning.can_share else []
    if shared:
        beginning.extend([shared])
    rests = [tokens[len(shared) :] for tokens in tokenized]
    groups = sorted(group_prompts(rests), key=lambda group: -max(len(rests[index]) for index in group))
    order = [index for group in groups for index in group]
    with tqdm(total=len(order), desc=description, unit="item", disable=len(order) == 1) as bar:
        for start in range(0, len(order), batch_size):
            positions = order[start : start + batch_size]
            yield positions, *_prefill_batch(beginning, [rests[index] for index in positions])
            bar.update(len(positions))


def group_prompts(prompts: Sequence[list[int]]) -> list[list[int]]:
    """Indices of the prompts in groups that begin with the same passage."""
    groups: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=prompts.__getitem__):
        if groups and common_prefix_length([prompts[groups[-1][-1]], prompts[index]]) >= MIN_SHARED_TOKENS:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _prefill_batch(beginning: PrefilledBatch, prompts: list[list[int]]) -> tuple[PrefilledBatch, "torch.Tensor"]:
    """Process shared heads once and then each prompt's tail, if that is less than all prompts at once."""
    groups = group_prompts(prompts) if beginning.can_share else [[index] for index in range(len(prompts))]
    heads = [_common_prefix([prompts[index] for index in group]) for group in groups]
    group_of = {index: number for number, group in enumerate(groups) for index in group}
    longest_tail = max((len(prompts[i]) - len(heads[g]) for i, g in group_of.items() if len(groups[g]) > 1), default=0)
    # A prompt without a group is cut so that its tail is no longer than the others'.
    heads = [
        head if len(group) > 1 else head[: max(0, len(prompts[group[0]]) - longest_tail)]
        for head, group in zip(heads, groups, strict=True)
    ]
    token_count = len(groups) * max(map(len, heads)) + len(prompts) * longest_tail
    if not longest_tail or token_count >= len(prompts) * max(map(len, prompts)):
        batch = beginning.select([0] * len(prompts))
        return batch, batch.extend(prompts)[:, -1]
    head_batch = beginning.select([0] * len(groups))
    head_batch.extend(heads)
    batch = head_batch.select([group_of[index] for index in range(len(prompts))])
    tails = [tokens[len(heads[group_of[index]]) :] for index, tokens in enumerate(prompts)]
    return batch, batch.extend(tails)[:, -1]


def _common_prefix(prompts: Sequence[list[int]]) -> list[int]:
    """The beginning that the prompts share, without the last token of any: its logits are needed."""
    return prompts[0][: common_prefix_length([tokens[:-1] for tokens in prompts])]


def count_learned_positions(model: Any) -> int | None:
    """How many positions the model has an embedding for; None if it computes positions, and can read any length."""
    from torch.nn import Embedding

    count = getattr(model.config, "max_position_embeddings", None)
    others = [module for module in model.modules() if module is not model.get_input_embeddings()]
    # Some models have a few more embeddings than positions.
    is_learned = count and any(isinstance(one, Embedding) and 0 <= one.num_embeddings - count <= 2 for one in others)
    return count if is_learned else None


def _copy_layer(layer: Any) -> Any:
    """A copy whose states can be replaced; linear attention has them in dictionaries, which a shallow copy shares."""
    copied = copy.copy(layer)
    vars(copied).update({name: dict(value) for name, value in vars(copied).items() if isinstance(value, dict)})
    return copied
