"""The filters between the ranking and the teacher (docs/method.md section 4): what may not, or need not, be paid for."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from rebase.datastore.cells import worth_embedding
from rebase.parameters import ExcludeParameters, LicensePolicy, RetrieveParameters
from rebase.records import Task
from rebase.text import count_words, cut_at_sentence, ngrams, pieces, runs, tokens, weight

if TYPE_CHECKING:
    from datasketch import MinHash, MinHashLSH

#: A shorter text ("yes", "Paris") is no evidence that an evaluation item leaked; so many words are, as a whole cell.
_EXACT_WORDS = 4
#: A text of so many words is evidence within a longer cell too.
_WITHIN_WORDS = 8
#: Cells may be megabytes long: they are compared in pieces of about so many characters.
_PIECE_CHARACTERS = 2**16
_SHINGLE = 3
#: Of a longer row only the beginning is compared with other rows: more than a teacher will be shown.
_MAX_SHINGLES = 10_000
_MAX_CHARACTERS = 100_000
_PERMUTATIONS = 128
#: Five standard deviations of a similarity of 0.8 that is estimated from 128 permutations.
_ESTIMATE_MARGIN = 0.18
#: Free answers are content of their own. Labels, numbers and spans stand anywhere, or in the item's passage.
_WRITTEN_ANSWERS = {"code", "text"}
_UNKNOWN_LICENSES = {"unknown", "other", "none", "noassertion", "n/a", "unspecified"}
_LICENSE_CHOICE = re.compile(r"\s+or\s+")
_LICENSE_PART = re.compile(r"\s+and\s+|[;,]|\+(?=\s*\w)")
_LICENSE_SPACE = re.compile(r"[\s_]+")


@dataclass(frozen=True)
class Candidate:
    """A ranked row at the filters; ``cells`` is its flat ``{column: text}``."""

    row_id: str
    dataset: str
    license: str
    cells: Mapping[str, str]
    content_hash: str


@dataclass(frozen=True)
class Rejection:
    """Why a row was rejected."""

    reason: str
    detail: str = ""


Filter = Callable[[Candidate], Rejection | None]


def exclusion_filter(task: Task) -> Filter:
    """Reject datasets that the task names, and any whose id contains the task's name (arXiv 2407.05463, code)."""
    # The name as it is written, as in the published code: "school-word-problems" is no copy of a task "word_problems",
    # and what is one, under whatever name, the contamination filter finds.
    patterns = [*task.exclude, f"*{task.name}*"]

    def row_filter(row: Candidate) -> Rejection | None:
        pattern = find_pattern(row.dataset, patterns)
        return Rejection("excluded_dataset", pattern) if pattern else None

    return row_filter


def find_pattern(name: str, patterns: Iterable[str]) -> str | None:
    """The first of the patterns that matches the name; ``*`` and ``?`` are wildcards, case does not count."""
    return next((pattern for pattern in patterns if fnmatchcase(name.casefold(), pattern.casefold())), None)


def why_excluded(dataset: object, license: object, exclude: ExcludeParameters) -> str | None:
    """Why an example of the dataset, under the license, is taken out before training; None where it is not.

    An example that was written without a source has neither, and stays.
    """
    if not isinstance(dataset, str):
        return None
    if find_pattern(dataset, exclude.datasets):
        return "excluded_dataset"
    policy = LicensePolicy(allow=("*",), deny=exclude.licenses, unknown="allow")
    return None if license_allowed(license if isinstance(license, str) else "unknown", policy) else "excluded_license"


def remove_excluded(examples: pd.DataFrame, exclude: ExcludeParameters) -> tuple[pd.DataFrame, dict[str, int]]:
    """The examples without those of excluded datasets and licenses, and counts of the excluded ones by reason."""
    reasons = [
        why_excluded(dataset, license, exclude)
        for dataset, license in zip(examples["dataset"], examples["license"], strict=True)
    ]
    return examples[[reason is None for reason in reasons]], dict(Counter(filter(None, reasons)))


def license_allowed(license: str, policy: LicensePolicy) -> bool:
    """Whether the policy lets a license through.

    Of several licenses (``;``, ``,``, ``+``, ``AND``) all must be allowed, of a choice (``OR``) one. Where brackets
    say what belongs together, all must be.
    """

    def matches(part: str, patterns: Iterable[str]) -> bool:
        return any(fnmatchcase(part, pattern.casefold()) for pattern in patterns)

    def allowed(part: str) -> bool:
        if matches(part, policy.deny):
            return False
        return policy.unknown == "allow" if part in _UNKNOWN_LICENSES else matches(part, policy.allow)

    def all_allowed(choice: str) -> bool:
        # "CC BY-NC 4.0" is how people write cc-by-nc-4.0.
        parts = [_LICENSE_SPACE.sub("-", part.strip()) for part in _LICENSE_PART.split(choice) if part.strip()]
        return all(map(allowed, parts or ["unknown"]))

    bare = re.sub(r"[()]", " ", license.casefold())
    if bare != license.casefold():  # It has brackets.
        return all_allowed(_LICENSE_CHOICE.sub(";", bare))
    return any(map(all_allowed, _LICENSE_CHOICE.split(bare)))


def license_filter(policy: LicensePolicy) -> Filter:
    """Reject rows whose dataset's license the policy does not allow."""

    def row_filter(row: Candidate) -> Rejection | None:
        return None if license_allowed(row.license, policy) else Rejection("license", row.license)

    return row_filter


def contamination_filter(items: Iterable[Sequence[str]], n: int) -> Filter:
    """Reject rows that hold an item: a part of an evaluation item or of one of the task's examples.

    ``items`` are the texts that belong together, an item's fields. Texts are compared as ``tokens``, which neither
    case, spacing nor punctuation change, so in code ``f(x[0])`` equals ``f x 0``: it is better to lose a row too many.
    Lengths are counted in words, two letters of a script without spaces each (``weight``): 13 words are 26 Japanese
    letters, which say as much. A row is rejected

    - for a cell that equals a text of at least 4 words, or cells that equal all texts of an item that has as many;
    - for a cell that contains a whole text of at least 8 words;
    - for a cell that shares a run of ``n`` words with a text.

    The work is linear in the cells' lengths, the memory is bounded.
    """
    known = _Protected.of(items, n)

    def row_filter(row: Candidate) -> Rejection | None:
        equal: dict[tuple[str, ...], str] = {}
        for column, cell in row.cells.items():
            for words, whole in _word_blocks(cell, n):
                if whole and tuple(words) in known.exact:
                    return Rejection("contamination_exact", column)
                if whole and tuple(words) in known.small:
                    equal[tuple(words)] = column
                if shared := known.shared(words):
                    return Rejection("contamination_ngram", f"{column}: {' '.join(shared)}")
        for text, column in equal.items():
            if any(parts <= equal.keys() for parts in known.small_items.get(text, ())):
                return Rejection("contamination_exact", column)
        return None

    return row_filter


@dataclass(frozen=True)
class _Protected:
    """Texts as tokens, by how they are looked for.

    ``exact`` are those long enough to be an item's trace as whole cells, ``grams`` the runs of ``n`` words of the long
    ones; ``within`` has the shorter ones that are long enough to be found inside a cell, by their first words.
    ``small`` texts say something only all together: ``small_items`` has such items by their longest text.
    """

    n: int
    exact: frozenset[tuple[str, ...]]
    grams: frozenset[tuple[str, ...]]
    within: Mapping[tuple[str, ...], list[tuple[str, ...]]]
    small: frozenset[tuple[str, ...]]
    small_items: Mapping[tuple[str, ...], list[frozenset[tuple[str, ...]]]]

    @classmethod
    def of(cls, items: Iterable[Sequence[str]], n: int) -> "_Protected":
        texts: dict[tuple[str, ...], float] = {}
        small_items: dict[tuple[str, ...], list[frozenset[tuple[str, ...]]]] = {}
        for item in dict.fromkeys(map(tuple, items)):
            parts = {words: weight(words) for words in map(tuple, map(tokens, item)) if words}
            texts |= parts
            if max(parts.values(), default=0) < _EXACT_WORDS <= sum(parts.values()):
                small_items.setdefault(max(parts, key=parts.__getitem__), []).append(frozenset(parts))
        within: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for words, size in texts.items():
            if _WITHIN_WORDS <= size < n:
                within.setdefault(next(runs(words, _WITHIN_WORDS)), []).append(words)
        return cls(
            n,
            frozenset(words for words, size in texts.items() if size >= _EXACT_WORDS),
            frozenset(run for words in texts for run in runs(words, n)),
            within,
            frozenset(words for sets in small_items.values() for parts in sets for words in parts),
            small_items,
        )

    def shared(self, words: list[str]) -> tuple[str, ...] | None:
        """The first run of the words that a text shares, or the text that they contain."""
        # No text has fewer tokens than words. Nearly all rows are clean, which a set sees fastest.
        if len(words) >= self.n and not self.grams.isdisjoint(runs(words, self.n)):
            return next(run for run in runs(words, self.n) if run in self.grams)
        if len(words) < _WITHIN_WORDS or self.within.keys().isdisjoint(runs(words, _WITHIN_WORDS)):
            return None
        found = (
            text
            for start, run in enumerate(runs(words, _WITHIN_WORDS))
            for text in self.within.get(run, ())
            if tuple(words[start : start + len(text)]) == text
        )
        return next(found, None)


def _word_blocks(text: str, n: int) -> Iterator[tuple[list[str], bool]]:
    """The text's tokens in blocks that overlap by ``n`` words, and whether the block is the whole text."""
    last: list[str] = []
    for piece in pieces(text, _PIECE_CHARACTERS):
        words = last + tokens(piece)
        yield words, len(piece) == len(text)
        # A token is at least half a word.
        last = words[-2 * max(n, _WITHIN_WORDS) :]


def protected_texts(
    task: Task, evaluation_fields: Iterable[str], evaluation_answers: Iterable[str] = ()
) -> list[tuple[str, ...]]:
    """What training data must not contain: for each evaluation item, and each of the task's examples, its texts.

    ``evaluation_fields`` are JSON objects, ``evaluation_answers`` JSON lists. Answers count where they are written
    freely (code, text): a label or a number stands in many a row, and a span in its passage.
    """
    items = [tuple(json.loads(fields).values()) for fields in evaluation_fields]
    items += [tuple(example[name] for name in task.query_fields) for example in task.examples]
    items += [(example["rationale"],) for example in task.examples if task.cot]
    if task.answer.type in _WRITTEN_ANSWERS:
        items += [(answer,) for answers in evaluation_answers for answer in json.loads(answers)]
        items += [(example["answer"],) for example in task.examples]
    return items


def passage_of(row: Candidate, parameters: RetrieveParameters) -> str | None:
    """The row's reading passage: its longest cell of enough words, cut at a sentence; None where none is enough."""
    longest = max(row.cells.values(), key=len, default="")
    passage = cut_at_sentence(longest, parameters.max_passage_words)
    return passage if count_words(passage) >= parameters.min_passage_words else None


def passage_filter(parameters: RetrieveParameters) -> Filter:
    """Reject rows without a passage; for tasks that take one from the row."""

    def row_filter(row: Candidate) -> Rejection | None:
        return Rejection("no_passage") if passage_of(row, parameters) is None else None

    return row_filter


@dataclass(frozen=True)
class _Sketch:
    """A row as it is compared with others: its shingles, and their MinHash (None where there are none)."""

    shingles: np.ndarray
    minhash: "MinHash | None"

    @classmethod
    def of(cls, row: Candidate) -> "_Sketch":
        found = shingles(row.cells)
        if not len(found):
            return cls(found, None)
        minhash = _blank().copy()
        minhash.update_batch((found & np.uint64(2**32 - 1)).tolist())
        return cls(found, minhash)


@cache
def _blank() -> "MinHash":
    """A MinHash of nothing: its permutations take longer to make than a row to sketch."""
    from datasketch import MinHash

    return MinHash(num_perm=_PERMUTATIONS, seed=1, hashfunc=int)


@dataclass
class Duplicates:
    """Collapses exact and near duplicates among the rows that are kept: the best ranked stays and knows its duplicates.

    Two rows are near duplicates when the Jaccard similarity of their cells' 3-word shingles, whatever the columns
    are called, reaches ``threshold``. MinHash proposes, the true similarity decides.
    """

    threshold: float
    of: dict[str, list[str]] = field(default_factory=dict)
    _hashes: dict[str, str] = field(default_factory=dict)
    _kept: list[tuple[str, _Sketch]] = field(default_factory=list)
    _latest: tuple[Candidate, _Sketch] | None = None
    _lsh: "MinHashLSH | None" = None

    def find(self, row: Candidate) -> str | None:
        """The kept row that this one repeats, which then counts it among its duplicates; None if it is new."""
        original = self._hashes.get(row.content_hash) or self._near(self._sketch(row))
        if original is not None:
            self.of[original].append(row.row_id)
        return original

    def keep(self, row: Candidate) -> None:
        """Remember a row that passed all filters."""
        sketch = self._sketch(row)
        self.of[row.row_id] = []
        self._hashes[row.content_hash] = row.row_id
        if sketch.minhash:
            self._index().insert(len(self._kept), sketch.minhash)
            self._kept.append((row.row_id, sketch))

    def _near(self, own: _Sketch) -> str | None:
        if own.minhash is None:
            return None
        # In the order of the ranking. Rows of one template propose each other by the thousand: the estimate is cheap.
        proposed = [self._kept[place] for place in sorted(self._index().query(own.minhash))]
        values = np.array([sketch.minhash.hashvalues for _, sketch in proposed if sketch.minhash])
        estimates = np.mean(values == own.minhash.hashvalues, axis=-1) if proposed else []
        for (name, sketch), estimate in zip(proposed, estimates, strict=True):
            likely = estimate >= self.threshold - _ESTIMATE_MARGIN
            if likely and jaccard(own.shingles, sketch.shingles) >= self.threshold:
                return name
        return None

    def _sketch(self, row: Candidate) -> _Sketch:
        """The row's sketch, made once for looking and keeping."""
        if self._latest is None or self._latest[0] is not row:
            self._latest = row, _Sketch.of(row)
        return self._latest[1]

    def _index(self) -> "MinHashLSH":
        if self._lsh is None:
            from datasketch import MinHashLSH

            # Well below the threshold, where hardly a pair at the threshold is missed: a proposal costs one
            # comparison, a miss a duplicate.
            self._lsh = MinHashLSH(threshold=0.6 * self.threshold, num_perm=_PERMUTATIONS, weights=(0.2, 0.8))
        return self._lsh


def duplicate_filter(duplicates: Duplicates) -> Filter:
    """Reject rows that repeat a kept one."""

    def row_filter(row: Candidate) -> Rejection | None:
        original = duplicates.find(row)
        return Rejection("duplicate", original) if original else None

    return row_filter


def share_filter(kept: Counter[str], limit: int) -> Filter:
    """Reject rows of a dataset that has ``limit`` rows among the kept ones already."""

    def row_filter(row: Candidate) -> Rejection | None:
        return Rejection("dataset_share", row.dataset) if kept[row.dataset] >= limit else None

    return row_filter


def shingles(cells: Mapping[str, str]) -> np.ndarray:
    """The 3-word shingles of a row's texts as sorted 64-bit hashes; a shorter text is one shingle."""
    texts = (tokens(text[:_MAX_CHARACTERS]) for text in cells.values() if worth_embedding(text))
    grams = (gram for words in texts for gram in (ngrams(words, _SHINGLE) if len(words) > _SHINGLE else [words]))
    hashes = (blake2b(" ".join(gram).encode(), digest_size=8).digest() for gram in islice(grams, _MAX_SHINGLES))
    return np.unique(np.frombuffer(b"".join(hashes), dtype=np.uint64))


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """|A ∩ B| / |A ∪ B| of two sets, sorted; 0 for two empty sets."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / max(1, len(first) + len(second) - shared)
