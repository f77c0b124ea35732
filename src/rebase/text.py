"""Text as it is compared: normalised, in tokens and in n-grams."""

import re
import unicodedata
from collections.abc import Iterator
from itertools import islice

# A letter of a script that is written without spaces is a token by itself.
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f]|[^\W_]+")
_WORD = re.compile(r"\S+")
_SENTENCE_END = re.compile(r"[.!?。！？][\"')\]]*(?=\s|$)|[。！？]")


def tokens(text: str) -> list[str]:
    """Lower-case words without punctuation, compatibility forms folded; CJK and Thai letters one by one."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def normalise(text: str) -> str:
    """The text's tokens joined by single spaces: equal for texts that differ in case, spacing and punctuation."""
    return " ".join(tokens(text))


def ngrams(words: list[str], n: int) -> Iterator[tuple[str, ...]]:
    """All runs of ``n`` words; none where there are fewer."""
    return zip(*(words[start:] for start in range(n)), strict=False)


def cut_at_sentence(text: str, max_words: int) -> str:
    """The longest beginning of whole sentences with at most ``max_words`` words; else the first ``max_words``."""
    word_ends = [word.end() for word in islice(_WORD.finditer(text), max_words + 1)]
    if len(word_ends) <= max_words:
        return text
    limit = word_ends[max_words - 1]
    # A cell may be megabytes long: nothing behind the limit is looked at.
    ends = [sentence.end() for sentence in _SENTENCE_END.finditer(text, 0, limit)]
    return text[: ends[-1] if ends else limit]
