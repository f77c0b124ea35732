"""Reject rows that contain evaluation items or the examples of the task."""

import json
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import chain

import pandas as pd

from rebase.generation.filters.base import Rejection
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


class ContaminationFilter:
    """Rejects rows that contain a part of an item. An item is a sequence of texts, such as the fields of a query.

    Texts are compared as ``tokens``, which ignores case, spacing and punctuation; in code ``f(x[0])`` equals ``f x 0``,
    because a false alarm costs only one row. Lengths count words, and two letters of a script without spaces as one
    word (``weight``). A row is rejected if

    - a cell equals a text of at least 4 words, or several cells equal all texts of an item with 4 words in all;
    - a cell contains a whole text of at least 8 words;
    - a cell shares a run of ``n`` words with a text.

    The time is linear in the length of the cells, the memory is bounded. ``shared`` are hashes of texts and runs that
    are the format of the items, not their content.
    """

    def __init__(self, items: Iterable[Sequence[str]], n: int, shared: Container[int] = ()) -> None:
        self._n = n
        texts: dict[_Words, float] = {}
        #: Items of short texts, which are evidence only together, by their longest text.
        self._small_items: dict[_Words, list[set[_Words]]] = defaultdict(list)
        for item in dict.fromkeys(map(tuple, items)):
            parts = {
                words: weight(words) for words in map(tuple, map(tokens, item)) if words and hash(words) not in shared
            }
            texts |= parts
            if max(parts.values(), default=0) < _EXACT_WORDS <= sum(parts.values()):
                self._small_items[max(parts, key=parts.__getitem__)].append(set(parts))
        self._small = {words for items in self._small_items.values() for parts in items for words in parts}
        self._exact = {words for words, size in texts.items() if size >= _EXACT_WORDS}
        self._runs = {run for words in texts for run in runs(words, n) if hash(run) not in shared}
        #: Texts that are evidence inside a cell, but have no run of ``n`` words, by their first words.
        self._within: dict[_Words, list[_Words]] = defaultdict(list)
        for words, size in texts.items():
            if _WITHIN_WORDS <= size < n:
                self._within[next(runs(words, _WITHIN_WORDS))].append(words)

    @classmethod
    def of(cls, task: Task, evaluation_items: pd.DataFrame, n: int) -> "ContaminationFilter":
        """The filter of rows for the task's evaluation items and examples."""
        return cls(chain(*protected_texts(task, evaluation_items)), n)

    @classmethod
    def of_queries(cls, task: Task, evaluation_items: pd.DataFrame, n: int) -> "ContaminationFilter":
        """The filter of texts in the form of the task's queries: what most items have in common is no content.

        Several items may have one passage, which is content.
        """
        kinds = protected_texts(task, evaluation_items)
        return cls(chain(*kinds), n, set() if task.passage else set().union(*(_shared(items, n) for items in kinds)))

    def reject(self, cells: Mapping[str, str]) -> Rejection | None:
        """Why the cells ``{column: text}`` are contaminated; None if they are not."""
        small: dict[_Words, str] = {}
        for column, cell in cells.items():
            for words, is_whole in _word_blocks(_join_list(cell), self._n):
                if is_whole and tuple(words) in self._exact:
                    return Rejection("contamination_exact", column)
                if is_whole and tuple(words) in self._small:
                    small[tuple(words)] = column
                if shared := self._find_shared(words):
                    return Rejection("contamination_ngram", f"{column}: {' '.join(shared)}")
        for text, column in small.items():
            if any(parts <= small.keys() for parts in self._small_items.get(text, ())):
                return Rejection("contamination_exact", column)
        return None

    def _find_shared(self, words: list[str]) -> _Words | None:
        """The first run of ``n`` words that a text shares, or the text that the words contain."""
        # A text has at least as many tokens as words. A set detects fastest that a row is clean, as nearly all are.
        if len(words) >= self._n and not self._runs.isdisjoint(runs(words, self._n)):
            return next(run for run in runs(words, self._n) if run in self._runs)
        if len(words) < _WITHIN_WORDS or self._within.keys().isdisjoint(runs(words, _WITHIN_WORDS)):
            return None
        for start, run in enumerate(runs(words, _WITHIN_WORDS)):
            for text in self._within.get(run, ()):
                if tuple(words[start : start + len(text)]) == text:
                    return text
        return None


def _join_list(cell: str) -> str:
    """The items of a list that ingest wrote as JSON, without their escapes; any other cell unchanged."""
    try:
        # The escape of a line break would be a part of the next word.
        return "\n".join(map(str, json.loads(cell))) if cell.startswith('["') else cell
    except (ValueError, RecursionError):
        return cell


def _word_blocks(text: str, n: int) -> Iterator[tuple[list[str], bool]]:
    """The tokens of the text in blocks that overlap by ``n`` words, and whether a block is the whole text."""
    overlap: list[str] = []
    for piece in pieces(text, _PIECE_CHARACTERS):
        words = overlap + tokens(piece)
        yield words, len(piece) == len(text)
        # A token is at least half a word.
        overlap = words[-2 * max(n, _WITHIN_WORDS) :]


def protected_texts(task: Task, evaluation_items: pd.DataFrame) -> list[list[tuple[str, ...]]]:
    """The texts of the evaluation items and of the task's examples, by kind, which training data must not contain.

    Answers count if they are written freely (code, text).
    """
    kinds = [
        [tuple(json.loads(fields).values()) for fields in evaluation_items["fields"]],
        [tuple(example[name] for name in task.query_fields) for example in task.examples],
        [(example["rationale"],) for example in task.examples if task.cot],
    ]
    if task.answer.type in _FREE_ANSWERS:
        kinds.append([(answer,) for references in evaluation_items["references"] for answer in json.loads(references)])
        kinds.append([(example["answer"],) for example in task.examples])
    return kinds


def _shared(items: list[tuple[str, ...]], n: int) -> set[int]:
    """Hashes of the texts, and of the runs of ``n`` words, that more than two and more than half of the items have."""
    texts = ([tuple(tokens(text)) for text in item] for item in dict.fromkeys(items))
    counts = Counter(part for item in texts for part in {hash(p) for words in item for p in (words, *runs(words, n))})
    return {part for part, count in counts.items() if count > max(2, len(items) / 2)}
