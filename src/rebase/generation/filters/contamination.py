"""Reject rows that contain evaluation items or the examples of the task."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rebase.generation.filters.base import Candidate, Filter, Rejection
from rebase.records import Task
from rebase.text import pieces, runs, tokens, weight

#: A shorter text ("yes", "Paris") is no evidence of contamination; a whole cell with this many words is.
_EXACT_WORDS = 4
#: A text with this many words is evidence inside a longer cell as well.
_WITHIN_WORDS = 8
#: Cells can have megabytes: they are compared in pieces of about this many characters.
_PIECE_CHARACTERS = 2**16
#: Answers of these types are written freely. Labels, numbers and spans occur in any row, or in the item's passage.
_FREE_ANSWERS = {"code", "text"}

_Words = tuple[str, ...]


def contamination_filter(items: Iterable[Sequence[str]], n: int) -> Filter:
    """Reject rows that contain a part of an item. An item is a sequence of texts, such as the fields of a query.

    Texts are compared as ``tokens``, which ignores case, spacing and punctuation; in code ``f(x[0])`` equals ``f x 0``,
    because a false alarm costs only one row. Lengths count words, and two letters of a script without spaces as one
    word (``weight``). A row is rejected if

    - a cell equals a text of at least 4 words, or several cells equal all texts of an item with 4 words in all;
    - a cell contains a whole text of at least 8 words;
    - a cell shares a run of ``n`` words with a text.

    The time is linear in the length of the cells, the memory is bounded.
    """
    index = _ItemIndex.of(items, n)

    def row_filter(row: Candidate) -> Rejection | None:
        small: dict[_Words, str] = {}
        for column, cell in row.cells.items():
            for words, is_whole in _word_blocks(cell, n):
                if is_whole and tuple(words) in index.exact:
                    return Rejection("contamination_exact", column)
                if is_whole and tuple(words) in index.small:
                    small[tuple(words)] = column
                if shared := index.find_shared(words):
                    return Rejection("contamination_ngram", f"{column}: {' '.join(shared)}")
        for text, column in small.items():
            if any(parts <= small.keys() for parts in index.small_items.get(text, ())):
                return Rejection("contamination_exact", column)
        return None

    return row_filter


@dataclass(frozen=True)
class _ItemIndex:
    """The texts of the items as tokens, by how they are searched.

    ``exact`` texts are evidence as whole cells, ``grams`` are the runs of ``n`` words in longer texts. ``within`` has
    the texts between these lengths by their first words. ``small`` texts are evidence only together: ``small_items``
    has such items by their longest text.
    """

    n: int
    exact: frozenset[_Words]
    grams: frozenset[_Words]
    within: Mapping[_Words, list[_Words]]
    small: frozenset[_Words]
    small_items: Mapping[_Words, list[frozenset[_Words]]]

    @classmethod
    def of(cls, items: Iterable[Sequence[str]], n: int) -> "_ItemIndex":
        texts: dict[_Words, float] = {}
        small_items: dict[_Words, list[frozenset[_Words]]] = {}
        for item in dict.fromkeys(map(tuple, items)):
            parts = {words: weight(words) for words in map(tuple, map(tokens, item)) if words}
            texts |= parts
            if max(parts.values(), default=0) < _EXACT_WORDS <= sum(parts.values()):
                small_items.setdefault(max(parts, key=parts.__getitem__), []).append(frozenset(parts))
        within: dict[_Words, list[_Words]] = {}
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

    def find_shared(self, words: list[str]) -> _Words | None:
        """The first run of ``n`` words that a text shares, or the text that the words contain."""
        # A text has at least as many tokens as words. A set detects fastest that a row is clean, as nearly all are.
        if len(words) >= self.n and not self.grams.isdisjoint(runs(words, self.n)):
            return next(run for run in runs(words, self.n) if run in self.grams)
        if len(words) < _WITHIN_WORDS or self.within.keys().isdisjoint(runs(words, _WITHIN_WORDS)):
            return None
        contained = (
            text
            for start, run in enumerate(runs(words, _WITHIN_WORDS))
            for text in self.within.get(run, ())
            if tuple(words[start : start + len(text)]) == text
        )
        return next(contained, None)


def _word_blocks(text: str, n: int) -> Iterator[tuple[list[str], bool]]:
    """The tokens of the text in blocks that overlap by ``n`` words, and whether a block is the whole text."""
    overlap: list[str] = []
    for piece in pieces(text, _PIECE_CHARACTERS):
        words = overlap + tokens(piece)
        yield words, len(piece) == len(text)
        # A token is at least half a word.
        overlap = words[-2 * max(n, _WITHIN_WORDS) :]


def protected_texts(
    task: Task, evaluation_fields: Iterable[str], evaluation_references: Iterable[str] = ()
) -> list[tuple[str, ...]]:
    """The texts of each evaluation item and of each example of the task, which training data must not contain.

    ``evaluation_fields`` are JSON objects, ``evaluation_references`` JSON lists. Answers count if they are written
    freely (code, text).
    """
    items = [tuple(json.loads(fields).values()) for fields in evaluation_fields]
    items += [tuple(example[name] for name in task.query_fields) for example in task.examples]
    items += [(example["rationale"],) for example in task.examples if task.cot]
    if task.answer.type in _FREE_ANSWERS:
        items += [(answer,) for references in evaluation_references for answer in json.loads(references)]
        items += [(example["answer"],) for example in task.examples]
    return items
