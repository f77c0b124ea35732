"""Choose the reading passage of a row, for tasks that take one from it; reject rows without one."""

import html
import json
import re
import unicodedata
from typing import NamedTuple

from rebase.generation.filters.base import Candidate, Rejection
from rebase.parameters import RetrieveParameters
from rebase.text import count_words, cut_at_sentence, is_unspaced, start_near

#: Letters of a cell that are read for each word of the longest passage: a cell may have megabytes.
_READ_LETTERS = 40
_LIST = re.compile(r"""\s*\[[\s\[]*(?=['"])""")
_BETWEEN = r"(?:[\s,\[\]\d.]|None|null|True|False|true|false)*"
_ITEM = re.compile(rf"""{_BETWEEN}(['"])((?:(?!\1)[^\\]|\\.)*)\1""", re.DOTALL)
_END = re.compile(rf"""{_BETWEEN}(?:['"].*)?""", re.DOTALL)  # The last item may be cut.
_SENTENCE_WORDS = 4  # Of the items of a list, on average; shorter ones are words or names.
_ESCAPE = re.compile(r"\\(?:newline|[nrt](?![a-z]))")
# The fields of a record in one cell: ``question: ... passage: ...``, or ``context: ..., qas: ...``.
_FIELD = re.compile(
    r"(?:^|[\n,;])\s*(?:answer|article|background|candidate|context|id|label|option|paragraph|passage|qa|question|section"
    r"|snippet|story|summary|text|title|url|\w+_\w+)s?\s?:",
    re.IGNORECASE,
)
_SENTENCES_OF_A_LIST = re.compile(r"(?<=[.!?]);(?=\s)")  # A list's items are joined by semicolons when it is ingested.
_SENTENCE_END = re.compile(r"""[.!?…](?=["')\]»”’]*(?:\s|$))|[。！？।۔؟።]""")
# Lettered options, as in ``(A) 15 (B) 16``, and what is said of one: ``Choice B is incorrect``.
_OPTION = re.compile(r"(?<!\w)\(?([A-E])\)|\b(?:[Cc]hoice|[Oo]ption)s?\W{0,3}([A-E])\b")
_JUDGED_OPTION = re.compile(r"\b[A-E]\b\W{0,3}\b(?:is|are) (?:the )?(?:best|right|wrong|correct|incorrect)\b")
_SYMBOL = re.compile(r"[(){}\[\]<>|\\/=_^~$#*@+&:;]")

# The limits of prose, in the manner of Gopher's rules for web pages (arXiv 2112.11446, appendix A1.1), wider for other
# languages than English, and set by reading 746 cells of 700 public datasets (benchmarks/passages.py).
_WORD_LETTERS = (2.0, 15.0)  # Mean letters of a word; not in scripts without spaces.
_MAX_REPEATED = 0.3  # Share of sentences that occurred before.
_MIN_LETTERS = 0.8  # Share of letters among characters that are not spaces.
_MAX_SYMBOLS = 0.25  # Brackets, operators and markup for each word.
_MAX_SENTENCE_WORDS = 60.0


class Passage(NamedTuple):
    """A reading passage, its column, and why this one was chosen: ``best match`` or ``longest``."""

    passage: str
    passage_column: str
    passage_choice: str


def find_passage(row: Candidate, parameters: RetrieveParameters, answer: str = "") -> Passage | None:
    """The reading passage of a row, cut at a sentence and around the answer if it has it; None if it has none.

    It is the cell that matched the task's queries best, or else the longest one, that is prose of enough words after
    ``clean_text``.
    """
    by_length = sorted(row.cells, key=lambda column: len(row.cells[column]), reverse=True)
    best = [row.query_column] if row.query_column in row.cells else []
    for column in dict.fromkeys([*best, *by_length]):
        text, fault = _read(row.cells[column], parameters, answer)
        if not fault:
            return Passage(text, column, "best match" if column == row.query_column else "longest")
    return None


def reject_without_passage(row: Candidate, parameters: RetrieveParameters, answer: str = "") -> Rejection:
    """The rejection of a row in which ``find_passage`` found none; the detail is the fault of its longest cell."""
    return Rejection("no_passage", _read(row.longest_cell, parameters, answer)[1])


def _read(cell: str, parameters: RetrieveParameters, answer: str = "") -> tuple[str, str]:
    """The passage that a cell would be, and the fault of the passage, or an empty text."""
    letters = max(0, cell.find(answer)) + _READ_LETTERS * parameters.max_passage_words
    text = start_near(clean_text(cell[:letters]), answer, parameters.max_passage_words)
    passage = cut_at_sentence(text, parameters.max_passage_words)
    return passage, "short" if count_words(passage) < parameters.min_passage_words else fault_of(passage)


def clean_text(text: str) -> str:
    """The text without HTML entities, spelled-out escapes, mojibake, or the quotes and brackets of a list.

    Of a record, the longest field.
    """
    text = _join_list(text)
    if _FIELD.match(text):
        text = _join_list(max(_FIELD.split(text), key=len))
    return _SENTENCES_OF_A_LIST.sub("", clean_spelling(text)).strip()


def clean_spelling(text: str) -> str:
    """The text without HTML entities, spelled-out escapes and mojibake."""
    from ftfy import fix_text

    text = _ESCAPE.sub("\n", html.unescape(text)).replace("\\'", "'").replace('\\"', '"')
    # Chinese and Japanese punctuation is wide.
    return fix_text(text, uncurl_quotes=False, fix_character_width=False)


def fault_of(text: str) -> str:
    """Why a text is no prose; empty if it is.

    One of ``markup``, ``symbols``, ``no sentences``, ``odd words``, ``repetition``, ``options``, ``questions``. A text
    about lettered options belongs to an exam question that it does not contain.
    """
    words = count_words(text)
    characters = "".join(text.split())
    sentences = [sentence for sentence in map(str.strip, _SENTENCE_END.split(text)) if sentence]
    ends = _SENTENCE_END.findall(text)
    if len(_SYMBOL.findall(text)) > _MAX_SYMBOLS * words:
        return "markup"
    if sum(map(_is_letter, characters)) < _MIN_LETTERS * len(characters):
        return "symbols"
    if not ends or words > _MAX_SENTENCE_WORDS * len(ends):
        return "no sentences"
    least, most = (letters * len(text.split()) for letters in _WORD_LETTERS)
    if not is_unspaced(text) and not least <= len(characters) <= most:
        return "odd words"
    if len(set(sentences)) < (1 - _MAX_REPEATED) * len(sentences):
        return "repetition"
    options = {letter for letters in _OPTION.findall(text) for letter in letters if letter}
    if len(options) > 1 or _JUDGED_OPTION.search(text):
        return "options"
    return "questions" if set(ends) <= {"?", "？", "؟"} else ""


def _is_letter(character: str) -> bool:
    """Whether the character is a letter, or an accent or vowel sign of one."""
    return unicodedata.category(character)[0] in "LM"


def _join_list(text: str) -> str:
    """The items of a list in the spelling of Python or JSON as one text; any other text unchanged.

    Items of some length become sentences, and records become lines. If the list is cut within its first item, the text
    is this item. Prose that begins with a quotation in brackets is no list.
    """
    if not (opening := _LIST.match(text)):
        return text
    items, position = [], opening.end()
    while item := _ITEM.match(text, position):
        items.append(_unescape(item[1], item[2]))
        position = item.end()
    if not _END.fullmatch(text, position):
        return text
    items = items or [text[opening.end() + 1 :]]
    end = "." if len(" ".join(items).split()) >= _SENTENCE_WORDS * len(items) else ""
    separator = "\n" if _FIELD.match(items[0]) else " "
    return separator.join(item if _SENTENCE_END.search(item[-2:]) else f"{item}{end}" for item in items if item)


def _unescape(quote: str, item: str) -> str:
    """An item of a list in JSON's spelling without its escapes; any other item unchanged."""
    try:
        return str(json.loads(f'"{item}"', strict=False)) if quote == '"' else item
    except ValueError:
        return item
