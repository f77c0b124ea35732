"""Packed batches: the texts of a batch one after another, without padding. All private parts of libraries are here.

This relies on: ``auto_model`` and ``_infer_flatten_position_offset`` of the Transformer module of
sentence-transformers, which passes unknown features to the model as keyword arguments; ``is_backend_compatible`` and
``set_attn_implementation`` of a model, ``AttentionInterface``, ``AttentionMaskInterface`` and
``sdpa_attention_forward`` of transformers.
"""

from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

#: The name of the packed attention in transformers.
_PACKED = "rebase_packed"


def use_packed_attention(model: "SentenceTransformer") -> bool:
    """Have the model attend within each text of a packed batch; return False if its attention cannot be replaced."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_PACKED, _packed_attention)
    # A mask of a packed batch would be as large as the square of its tokens, and is not needed.
    AttentionMaskInterface.register(_PACKED, _no_mask)
    return _set_attention(model, _PACKED)


def use_padded_attention(model: "SentenceTransformer") -> None:
    """Undo ``use_packed_attention``."""
    _set_attention(model, "sdpa")


def pack(model: "SentenceTransformer", batch: list[list[int]]) -> dict[str, Any]:
    """Token ids of texts as one packed batch, as sentence-transformers feeds flash attention."""
    import torch

    transformer: Any = model[0]
    ends = torch.tensor([0, *map(len, batch)], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    longest = max(map(len, batch))
    positions = torch.cat([torch.arange(len(ids)) for ids in batch])
    return {
        "input_ids": torch.tensor([list(chain.from_iterable(batch))]),
        # Some models count positions from the id of their padding token.
        "position_ids": positions[None] + transformer._infer_flatten_position_offset(),
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _set_attention(model: "SentenceTransformer", name: str) -> bool:
    transformer: Any = getattr(model[0], "auto_model", None)
    if not getattr(transformer, "is_backend_compatible", lambda: False)():
        return False
    transformer.set_attn_implementation(name)
    return True


def _no_mask(*_: Any, **__: Any) -> None:
    """The attention mask of a packed batch."""


def _packed_attention(
    module: Any,
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: None,
    *,
    cu_seq_lens_q: "torch.Tensor",
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple["torch.Tensor", None]:
    """Attention within each text of a packed batch: ``[1, heads, tokens, size]`` to ``[1, tokens, heads, size]``.

    ``cu_seq_lens_q`` has the start of each text, and the end. The batch is sorted, so texts of one length are
    consecutive and need only one call of the library's attention.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if sliding_window is not None:
        raise NotImplementedError("packed attention does not support a sliding window")
    attended = []
    begin = 0
    for length, run in groupby(cu_seq_lens_q.diff().tolist()):
        end = begin + length * len(list(run))
        # [1, heads, tokens, size] to [texts, heads, length, size], a view
        q, k, v = (
            states[0, :, begin:end].reshape(states.shape[1], -1, length, states.shape[3]).transpose(0, 1)
            for states in (query, key, value)
        )
        attended.append(sdpa_attention_forward(module, q, k, v, None, **kwargs)[0].flatten(0, 1))
        begin = end
    return torch.cat(attended)[None], None
