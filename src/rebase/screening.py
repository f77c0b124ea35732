"""The gates between the ranking and the teacher (docs/method.md section 4): what may not, or need not, be paid for."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from rebase.cells import worth_embedding
from rebase.parameters import LicencePolicy, RetrieveParameters
from rebase.records import Task
from rebase.text import cut_at_sentence, ngrams, tokens

if TYPE_CHECKING:
    from datasketch import MinHash, MinHashLSH

#: Texts of fewer tokens ("yes", "Paris") are no evidence that an evaluation item leaked.
_MIN_EXACT_TOKENS = 4
_SHINGLE = 3
_PERMUTATIONS = 128
_UNKNOWN_LICENCES = {"unknown", "other", "none"}
_LICENCE_SPACE = re.compile(r"[\s_]+")


@dataclass(frozen=True)
class Candidate:
    """A ranked row at the gates; ``cells`` is its flat ``{column: text}``."""

    row_id: str
    dataset: str
    licence: str
    cells: Mapping[str, str]
    content_hash: str


@dataclass(frozen=True)
class Refusal:
    """Why a row was refused."""

    reason: str
    detail: str = ""


Gate = Callable[[Candidate], Refusal | None]


def exclusion_gate(task: Task) -> Gate:
    """Refuse datasets that the task names, and any whose id contains the task's name (arXiv 2407.05463, code)."""
    patterns = [pattern.casefold() for pattern in (*task.exclude, f"*{task.name}*")]

    def gate(row: Candidate) -> Refusal | None:
        for pattern in patterns:
            if fnmatchcase(row.dataset.casefold(), pattern):
                return Refusal("excluded_dataset", pattern)
        return None

    return gate


def licence_allowed(licence: str, policy: LicencePolicy) -> bool:
    """Whether the policy lets a licence through. A card with several licences needs all of them allowed."""

    def matches(part: str, patterns: Iterable[str]) -> bool:
        return any(fnmatchcase(part, pattern.casefold()) for pattern in patterns)

    def allowed(part: str) -> bool:
        if matches(part, policy.deny):
            return False
        return policy.unknown == "allow" if part in _UNKNOWN_LICENCES else matches(part, policy.allow)

    # "CC BY-NC 4.0" is how people write cc-by-nc-4.0.
    parts = [_LICENCE_SPACE.sub("-", part.strip().casefold()) for part in licence.split(";") if part.strip()]
    return all(map(allowed, parts or ["unknown"]))


def licence_gate(policy: LicencePolicy) -> Gate:
    """Refuse rows whose dataset's licence the policy does not allow."""

    def gate(row: Candidate) -> Refusal | None:
        return None if licence_allowed(row.licence, policy) else Refusal("licence", row.licence)

    return gate


def contamination_gate(texts: Iterable[str], n: int) -> Gate:
    """Refuse rows with a cell that equals one of the texts (normalised), or shares a run of ``n`` tokens with one.

    ``texts`` are the fields of the evaluation items and of the task's own examples.
    """
    protected = [tokens(text) for text in texts]
    exact = {tuple(words) for words in protected if len(words) >= _MIN_EXACT_TOKENS}
    grams = {gram for words in protected for gram in ngrams(words, n)}

    def gate(row: Candidate) -> Refusal | None:
        for column, text in row.cells.items():
            words = tokens(text)
            if tuple(words) in exact:
                return Refusal("contamination_exact", column)
            shared = next((gram for gram in ngrams(words, n) if gram in grams), None)
            if shared:
                return Refusal("contamination_ngram", f"{column}: {' '.join(shared)}")
        return None

    return gate


def protected_texts(task: Task, evaluation_fields: Iterable[str]) -> list[str]:
    """The texts that training data must not contain: the evaluation items' fields (JSON each), and the examples'."""
    items = [json.loads(fields) for fields in evaluation_fields]
    examples = [{name: example[name] for name in task.query_fields} for example in task.examples]
    return [text for fields in (*items, *examples) for text in fields.values()]


def passage_of(row: Candidate, parameters: RetrieveParameters) -> str | None:
    """The row's reading passage: its longest cell of enough words, cut at a sentence; None where none is enough."""
    longest = max(row.cells.values(), key=len, default="")
    passage = cut_at_sentence(longest, parameters.max_passage_words)
    return passage if len(passage.split()) >= parameters.min_passage_words else None


def passage_gate(parameters: RetrieveParameters) -> Gate:
    """Refuse rows without a passage; for tasks that take one from the row."""

    def gate(row: Candidate) -> Refusal | None:
        return Refusal("no_passage") if passage_of(row, parameters) is None else None

    return gate


@dataclass
class Twins:
    """Collapses exact and near duplicates among the rows that are kept: the first one stays and knows its twins.

    Two rows are near duplicates when the Jaccard similarity of their cells' 3-word shingles, whatever the columns
    are called, reaches ``threshold``. MinHash proposes, the true similarity decides.
    """

    threshold: float
    of: dict[str, list[str]] = field(default_factory=dict)
    _shingles: dict[str, frozenset[tuple[str, ...]]] = field(default_factory=dict)
    _hashes: dict[str, str] = field(default_factory=dict)
    _lsh: "MinHashLSH | None" = None

    def find(self, row: Candidate) -> str | None:
        """The kept row that this one repeats, which then counts it among its twins; None if it is new."""
        original = self._hashes.get(row.content_hash) or self._near(row)
        if original is not None:
            self.of[original].append(row.row_id)
        return original

    def keep(self, row: Candidate) -> None:
        """Remember a row that passed all gates."""
        self.of[row.row_id] = []
        self._hashes[row.content_hash] = row.row_id
        self._shingles[row.row_id] = shingles(row.cells)
        self._index().insert(row.row_id, _minhash(self._shingles[row.row_id]))

    def _near(self, row: Candidate) -> str | None:
        own = shingles(row.cells)
        if not own:
            return None
        for candidate in sorted(self._index().query(_minhash(own))):
            if jaccard(own, self._shingles[candidate]) >= self.threshold:
                return str(candidate)
        return None

    def _index(self) -> "MinHashLSH":
        if self._lsh is None:
            from datasketch import MinHashLSH

            # Well below the threshold, where hardly a pair at the threshold is missed: a proposal costs one
            # comparison, a miss a duplicate.
            self._lsh = MinHashLSH(threshold=0.6 * self.threshold, num_perm=_PERMUTATIONS, weights=(0.2, 0.8))
        return self._lsh


def duplicate_gate(twins: Twins) -> Gate:
    """Refuse rows that repeat a kept one."""

    def gate(row: Candidate) -> Refusal | None:
        original = twins.find(row)
        return Refusal("duplicate", original) if original else None

    return gate


def share_gate(kept: Counter[str], limit: int) -> Gate:
    """Refuse rows of a dataset that has ``limit`` rows among the kept ones already."""

    def gate(row: Candidate) -> Refusal | None:
        return Refusal("dataset_share", row.dataset) if kept[row.dataset] >= limit else None

    return gate


def shingles(cells: Mapping[str, str]) -> frozenset[tuple[str, ...]]:
    """The 3-word shingles of a row's texts; a shorter text is one shingle."""
    texts = [tokens(text) for text in cells.values() if worth_embedding(text)]
    return frozenset(gram for words in texts for gram in (ngrams(words, _SHINGLE) if len(words) >= _SHINGLE
                                                          else [tuple(words)]))  # fmt: skip


def jaccard(first: frozenset[tuple[str, ...]], second: frozenset[tuple[str, ...]]) -> float:
    """|A ∩ B| / |A ∪ B|; 0 for two empty sets."""
    union = len(first | second)
    return len(first & second) / union if union else 0.0


def _minhash(grams: frozenset[tuple[str, ...]]) -> "MinHash":
    from datasketch import MinHash

    sketch = MinHash(num_perm=_PERMUTATIONS, seed=1)
    sketch.update_batch([" ".join(gram).encode() for gram in grams])
    return sketch
