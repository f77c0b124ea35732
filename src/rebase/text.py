"""Text as it is compared: normalised, in tokens and in n-grams."""

import re
import unicodedata
from collections.abc import Iterator

# A letter of a script that is written without spaces is a token by itself.
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f]|[^\W_]+")
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
    if len(text.split()) <= max_words:
        return text
    ends = (match.end() for match in _SENTENCE_END.finditer(text))
    fitting = [end for end in ends if len(text[:end].split()) <= max_words]
    return text[: fitting[-1]] if fitting else " ".join(text.split()[:max_words])
