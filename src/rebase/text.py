"""Text for comparison (normalized, tokens, n-grams), and its length in words and tokens."""

import ast
import json
import re
import textwrap
import unicodedata
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate, dropwhile, islice, takewhile
from typing import Any

# Letters of scripts that are written without spaces: Thai, Lao, Burmese, Khmer, Japanese, Chinese.
_UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED_LETTER = re.compile(rf"[{_UNSPACED}]")
# Accents and vowel signs of Latin, Hebrew, Arabic and the scripts of India: parts of words that are not letters.
_SIGNS = r"\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0670\u0900-\u0963\u0971-\u0dff"
# Signs with a meaning in formulas, code and bracket puzzles. Others, such as the hyphens of words and of ranges, are
# optional in prose.
_OPERATOR = re.compile(r"[()\[\]{}<>+*/=|]|(?<!\w)-(?=\s*[\d(])")
# Of other scripts' signs those of logic and mathematics count, and emoji, but not marks beside names and numbers.
_SYMBOL = re.compile(r"[^\w\s\x00-\x7f©®°]")
_TOKEN = re.compile(rf"[{_UNSPACED}]|(?:[^\W_{_UNSPACED}]|[{_SIGNS}])+")
# Soft hyphens, joiners, byte order marks, variation selectors.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff]")
# Words with their punctuation, or the letters and full-width signs of the scripts without spaces.
_WIDE = rf"{_UNSPACED}\u3001-\u303f\uff01-\uff65"
_WORD = re.compile(rf"(?P<letter>[{_WIDE}])|[^\s{_WIDE}]+")
_SPACE = re.compile(r"\s")
# Approximates a tokenizer's tokens, in bytes: pieces of words, pairs of signs, single digits; a single space belongs
# to the next word. In other scripts two bytes: a Cyrillic letter, or part of a Japanese one.
_PIECE = re.compile(rb"[A-Z]?[a-z]{1,6}|[A-Z]{1,2}|[!-/:-@\[-`{-~]{1,2}|[\x80-\xff]{1,2}|\s{2,}|[^ ]")
#: How a rationale ends, before the answer.
CONCLUSION = "So the answer is "
#: A number as people write it, with or without thousands separators.
NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
_FENCE = re.compile(r"```[^\n]*\n(?P<code>.*?)(?:```|\Z)", re.DOTALL)
# An option goes on until the next one; what follows the last one is taken for a part of it.
_OPTION = re.compile(r"^\(([A-Z])\) ((?s:.*?))(?=\n\([A-Z]\) |\Z)", re.MULTILINE)
# One or two words on a line of their own, such as "Options:".
_ANNOUNCEMENT = re.compile(r"(?:\S+[^\S\n]+)?\S+[:：]")
_MAX_CODE = 20_000
_NAMES_WITH_BRACKETS = re.compile(r"(?:[A-Z]\w* [(\[][^()\[\]]*[)\]](?:; |\Z))+")
_MAX_LIST_CHARACTERS = 20_000
_ITEM = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|None|-?\d[\d.]*)"""
_NUMPY_LIST = re.compile(rf"\[\s*{_ITEM}(?:\s+{_ITEM})+\s*\]", re.DOTALL)
_CODE = {
    ast.Assign, ast.AugAssign, ast.Call, ast.ClassDef, ast.For, ast.FunctionDef, ast.If, ast.Import,
    ast.ImportFrom, ast.Lambda, ast.Subscript, ast.Try, ast.While, ast.With, ast.comprehension,
}  # fmt: skip
_LISTED_OPTION = re.compile(r"\(([A-Z])\)|^[^\S\n]*([A-Z])[.):](?=\s)", re.MULTILINE)
_IN_BRACES = re.compile(r"\{([^{}]+)\}")
_PART_OF_COLUMN = re.compile(r"(.*)\|(options|[1-9][0-9]{0,5})", re.DOTALL)
#: No word has more letters on average, also in German.
_WORD_LETTERS = 20
_SENTENCE_END = re.compile(r"[.!?。！？][\"')\]]*(?=\s|$)|[。！？]")


def tokens(text: str) -> list[str]:
    """Split into lowercase words without punctuation, with compatibility forms folded (NFKC).

    In scripts without spaces each letter is a token. Names and numbers of code are kept: ``a_list[0]`` is ``a list 0``.
    """
    if text.isascii():
        return _TOKEN.findall(text.lower())
    # Case folding may decompose a letter: normalize again.
    folded = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold()
    return _TOKEN.findall(unicodedata.normalize("NFKC", folded))


def normalize(text: str) -> str:
    """The tokens joined by single spaces: equal for texts that differ in case, spacing and punctuation."""
    return " ".join(tokens(text))


def comparable(text: str) -> str:
    """``normalize``, plus brackets, operators and emoji: ``[ ( [`` is not ``{ {``, and ``-5`` is not ``5``."""
    folded = unicodedata.normalize("NFKC", text).replace("\u2212", "-")
    symbols = [symbol for symbol in _SYMBOL.findall(folded) if unicodedata.category(symbol) in {"Sm", "So"}]
    return f"{normalize(text)} {''.join(_OPERATOR.findall(folded) + symbols)}"


def ngrams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """All runs of ``n`` words; none if there are fewer."""
    return zip(*(islice(words, start, None) for start in range(n)), strict=False)


def weight(words: Sequence[str]) -> float:
    """The length of the tokens in words; a letter of a script without spaces counts as half a word.

    140 Japanese questions about Python have 2.2 such letters for each word of their English translations (MCoNaLa).
    """
    return sum(map(_halves, words)) / 2


def _halves(word: str) -> int:
    return 1 if len(word) == 1 and _UNSPACED_LETTER.match(word) else 2


def runs(words: Sequence[str], words_worth: int) -> Iterator[tuple[str, ...]]:
    """The shortest run from each word on whose ``weight`` is at least ``words_worth``.

    These are n-grams for any script: ``n`` words, ``2 n`` Japanese letters, or a mixture. Two texts that share any
    run of that weight share one of these.
    """
    return ngrams(words, words_worth) if all(map(str.isascii, words)) else _weighed_runs(words, words_worth)


def _weighed_runs(words: Sequence[str], words_worth: int) -> Iterator[tuple[str, ...]]:
    sums = list(accumulate(map(_halves, words), initial=0))
    for start, before in enumerate(sums):
        end = bisect_left(sums, before + 2 * words_worth)
        if end == len(sums):
            return
        yield tuple(words[start:end])


def pieces(text: str, size: int) -> Iterator[str]:
    """Cut the text into pieces of about ``size`` characters, at a space if there is one within ``2 * size``."""
    start = 0
    while start < len(text):
        space = _SPACE.search(text, start + size, start + 2 * size)
        end = space.end() if space else start + 2 * size
        yield text[start:end]
        start = end


def count_words(text: str) -> float:
    """The length of the text in words; a letter of a script without spaces counts as half a word."""
    return sum(1 if word["letter"] else 2 for word in _WORD.finditer(text)) / 2


def is_unspaced(text: str) -> bool:
    """Whether most of the text is in a script without spaces between words."""
    return 2 * len(_UNSPACED_LETTER.findall(text)) > len(text)


def cut_at_sentence(text: str, max_words: int) -> str:
    """The longest prefix of complete sentences with at most ``max_words`` words, or else the first ``max_words``.

    Words are counted as by ``count_words``.
    """
    limit, halves = 0, 0
    # A cell may have megabytes: nothing after the limit is read.
    for word in _WORD.finditer(text):
        halves += 1 if word["letter"] else 2
        if halves > 2 * max_words:
            break
        limit = word.end()
    else:
        return text
    ends = [sentence.end() for sentence in _SENTENCE_END.finditer(text, 0, limit)]
    return text[: ends[-1] if ends else limit]


def start_near(text: str, part: str, max_words: int) -> str:
    """The text from a sentence on, so that ``cut_at_sentence`` keeps the part; all of it if no sentence does.

    Of such sentences the middle one, so that the part has text on both sides. Case does not matter.
    """
    match = re.search(re.escape(part), text, re.IGNORECASE)
    if not match or match.end() <= len(cut_at_sentence(text, max_words)):
        return text
    # A cell may have megabytes: nothing that is far from the part is read.
    first = max(0, match.start() - _WORD_LETTERS * max_words)
    near = text[first : match.end() + _WORD_LETTERS * max_words]
    start, end = match.start() - first, match.end() - first
    sentences = [sentence.end() for sentence in _SENTENCE_END.finditer(near, 0, start)]
    keeping = [position for position in sentences if position + len(cut_at_sentence(near[position:], max_words)) >= end]
    return text[first + keeping[len(keeping) // 2] :].lstrip() if keeping else text


def approximate_tokens(text: str) -> int:
    """Estimate the number of tokens of the text in a language model, without a tokenizer.

    It trims texts and estimates costs for teachers whose tokenizers are not public. Compared with SmolLM2's tokenizer:
    in total +1 % on the rows of the sample datasets (116 thousand tokens; single rows 0.95 to 1.08 times, 10th and 90th
    percentile), and -5 % on 7,377 cells of 1,426 public datasets (325 thousand tokens, half of them not ASCII). Cells
    of 20 and more tokens: 0.82 to 1.19 times for ASCII, else 0.58 to 1.16 times; least for Korean, Hindi and emoji,
    which an English tokenizer splits into bytes.
    """
    # Half a surrogate pair becomes a question mark.
    return sum(1 for _ in _PIECE.finditer(text.encode("utf-8", "replace")))


def cut_at_tokens(text: str, max_tokens: int) -> str:
    """The prefix of at most ``max_tokens`` approximate tokens; it ends with a complete word if it has spaces."""
    encoded = text.encode("utf-8", "replace")
    # A cell may have megabytes: nothing after the limit is read.
    ends = [piece.end() for piece in islice(_PIECE.finditer(encoded), max_tokens + 1)]
    if len(ends) <= max_tokens:
        return text
    cut = len(encoded[: ends[max_tokens - 1] if max_tokens else 0].decode("utf-8", "ignore"))
    if not text[cut].isspace():
        cut = next((end for end in range(cut, 0, -1) if text[end - 1].isspace()), cut)
    return text[:cut].rstrip()


def list_items(text: str) -> list[str]:
    """The items of a list cell: ``a; b`` as ingest joins lists, or the spelling of JSON, Python or numpy.

    A null item is an empty text, so that the others keep their positions.
    """
    if text.startswith("[") and text.endswith("]") and len(text) <= _MAX_LIST_CHARACTERS:
        if _NUMPY_LIST.fullmatch(text):
            # Python would join texts without commas to one.
            text = f"[{', '.join(re.findall(_ITEM, text, re.DOTALL))}]"
        for parse in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                if isinstance(items := parse(text), list):
                    texts = ["" if item is None else str(item) for item in items]
                    # Half a surrogate pair, which JSON can spell, could not be saved.
                    return [item.encode("utf-8", "replace").decode() for item in texts]
    return text.split("; ")


def option_items(text: str) -> list[str]:
    """The options in a list cell; an empty one keeps its place, unless only empty ones follow to fill the list up."""
    items = list_items(text)
    while items and not items[-1].strip():
        items.pop()
    return items


def shorten(text: str, limit: int) -> str:
    """The text on one line, at most ``limit`` characters: what is cut ends with "…", after a word if one ends near.

    Unlike ``textwrap.shorten``, it also cuts texts without spaces.
    """
    line = " ".join(text.split())
    if len(line) <= limit:
        return line
    cut = line[: limit - 1]
    end = cut.rfind(" ")
    return f"{cut[:end] if 3 * end >= 2 * limit else cut}…"


def lettered_options(options: Sequence[Any]) -> str:
    """The options of a question, ``(A)``, ``(B)``, one per line; a letter that each has is not repeated."""
    texts = without_letters([str(option) for option in options])
    return "\n".join(f"({chr(ord('A') + index)}) {text}" for index, text in enumerate(texts))


def without_letters(options: Sequence[str]) -> list[str]:
    """The options without their letters (``(A)``, ``A.``, ``A:``), if each begins with its own."""
    letters = (re.escape(chr(ord("A") + index)) for index in range(len(options)))
    heads = [re.match(rf"\s*\(?{letter}[).:]\s*", option) for letter, option in zip(letters, options, strict=True)]
    ends = [head.end() for head in heads if head]
    return (
        [option[end:] for option, end in zip(options, ends, strict=True)] if len(ends) == len(options) else [*options]
    )


def listed_options(text: str) -> set[str]:
    """The letters of the options that a text lists: ``(A)``, or at the start of a line ``A.``, ``A)`` or ``A:``."""
    return {match[1] or match[2] for match in _LISTED_OPTION.finditer(text)}


def split_options(text: str) -> tuple[str, str, list[str]]:
    """The text before its lettered options, what announces these (such as a line ``Options:``), and the options."""
    options = list(dropwhile(lambda option: option[1] != "A", _OPTION.finditer(text)))
    if not options:
        return text, "", []
    before = text[: options[0].start()]
    question = before.rstrip()
    head, line_break, line = question.rpartition("\n")
    if line_break and _ANNOUNCEMENT.fullmatch(line):
        question = head.rstrip()
    return question, before[len(question) :], [option[2] for option in options]


def find_option(text: str, query: str) -> str:
    """The letter of the option of a query that is this text; empty if none is, or several are."""
    wanted = comparable(text)
    letters = [
        letter
        for letter, option in _OPTION.findall(query)
        if wanted in {comparable(option), comparable(option.partition("\n")[0])}
    ]
    return letters[0] if len(letters) == 1 else ""


def inside_fences(text: str) -> list[str]:
    """The insides of the Markdown code fences, or else the text; without line breaks around them."""
    return [code.strip("\n") for code in _FENCE.findall(text) or [text]]


def is_python(text: str) -> bool:
    """Whether the text is Python code: it parses, with a call, an assignment, a block or the like in it.

    Some prose parses too and does not count: words ("salt and pepper", "name: value", "Paris (France)"), ids and names
    of files. Texts longer than 20,000 characters are not read.
    """
    if len(text) > _MAX_CODE or _NAMES_WITH_BRACKETS.fullmatch(text.strip()):
        return False
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes that Python does not have
            parts = {type(node) for node in ast.walk(ast.parse(textwrap.dedent(text).strip()))}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return not parts.isdisjoint(_CODE) or ({ast.BinOp, ast.Name} <= parts and " " in text)


def template_columns(template: str) -> list[str]:
    """The columns of a template of a mapping: those in braces; a template without braces is a column."""
    return _IN_BRACES.findall(template) if "{" in template else [template]


def split_reference(reference: str) -> tuple[str, str]:
    """The column and the part of it in a reference such as ``choices|2``; the part is empty for the whole cell."""
    match = _PART_OF_COLUMN.fullmatch(reference)
    return (match[1], match[2]) if match else (reference, "")


def fill_template(template: str, value: Callable[[str], str]) -> str:
    """The template of a mapping with the ``value`` of each column."""
    return _IN_BRACES.sub(lambda match: value(match[1]), template) if "{" in template else value(template)


def common_prefix_length(sequences: Sequence[list[Any]]) -> int:
    """The number of leading items that all sequences share."""
    pairs = zip(min(sequences), max(sequences), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
