"""Reject rows in another language than the task's."""

import re
from collections import Counter
from functools import cache
from typing import Any

from rebase.generation.filters.base import Rejection
from rebase.records import ANY_LANGUAGE, Task
from rebase.text import listed_options, tokens, weight

#: Words that a text needs: the identifier finds a language in names, hashes and formulas, too.
_ENOUGH_WORDS = 5
#: Least probability of a language. Below it the identifier often takes English names and fragments for something else.
_CERTAIN = 0.8
_NO_LANGUAGE = "zxx"
_READ_LETTERS = 2000
_DIGIT = re.compile(r"\d")


def detect_language(text: str) -> str | None:
    """The ISO 639 code of a text's language; None if the text is short, no prose, or not clearly in one language."""
    start = text[:_READ_LETTERS]
    words = [token for token in tokens(start) if not (len(token) == 1 and token.isascii()) and not _DIGIT.search(token)]
    if weight(words) < _ENOUGH_WORDS:
        return None
    # The identifier has learned from few texts in capitals.
    language, probability = _identifier().classify(start.lower() if start.isupper() else start)
    return str(language) if probability >= _CERTAIN and language != _NO_LANGUAGE else None


def task_language(task: Task) -> str | None:
    """The language of a task's rows: the one that its file names, else that of its examples; None for any."""
    if task.language:
        return None if task.language == ANY_LANGUAGE else task.language
    return detect_language("\n".join(text for example in task.examples for text in example.values()))


class LanguageFilter:
    """Reject rows in another language than the task's.

    A text that is too short or too unclear to tell has the language of most earlier rows of its config, or of most
    earlier texts of its field if that was clear for most of them: names and titles often look like another language.
    """

    def __init__(self, task: Task) -> None:
        self.language = task_language(task)
        self._languages: dict[str, Counter[str | None]] = {}

    def reject(self, config: str, text: str) -> Rejection | None:
        """Reject a row of the config by its passage or longest cell."""
        if self.language is None:
            return None
        counts = self._languages.setdefault(config, Counter())
        if detected := detect_language(text):
            counts[detected] += 1
        else:
            [(detected, _)] = counts.most_common(1) or [(self.language, 0)]
        return self._reject(detected)

    def reject_field(self, field: str, text: str) -> Rejection | None:
        """Reject a row by one field of its query; lists of options are mostly names and not read."""
        if self.language is None or listed_options(text):
            return None
        counts = self._languages.setdefault(field, Counter())
        detected = detect_language(text)
        counts[detected] += 1
        return self._reject(detected or counts.most_common(1)[0][0])

    def _reject(self, detected: str | None) -> Rejection | None:
        return Rejection("language", detected) if detected not in (None, self.language) else None


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
