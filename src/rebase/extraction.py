"""From what a model wrote to its answer. Extraction knows nothing of the right answers and scores nothing."""

import re

from rebase.records import AnswerSpec

# "So the answer is X." is how rationales end here; models that explain themselves say it in such words too.
_ANSWER_IS = re.compile(r"\banswer\s+is\s*:?\s*(?P<rest>.*)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])[-\u2212]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])[-\u2212]?\.\d+")
_FENCE = re.compile(r"```[^\n]*\n(?P<code>.*?)(?:```|\Z)", re.DOTALL)


def extract(raw: str, answer: AnswerSpec) -> str:
    """The answer in ``raw``, by the task's answer type; empty where there is none.

    - ``span``: what follows the last "answer is", else the first line.
    - ``label``: the one label that the answer consists of, else the first label named in it.
    - ``number``: the last number after the last "answer is", else the last number; without thousands separators.
    - ``code``: the inside of the first code fence, else everything.
    - ``text``: everything.
    """
    text = raw.strip()
    match answer.type:
        case "span":
            return _first_line(_concluded(text)).strip()
        case "label":
            return _label(_concluded(text), answer.labels) or _label(text, answer.labels)
        case "number":
            return _number(_concluded(text)) or _number(text)
        case "code":
            fenced = _FENCE.search(text)
            return (fenced["code"] if fenced else text).strip("\n")
        case "text":
            return text


def _concluded(text: str) -> str:
    """What follows the last "answer is" on its line, without the full stop that ends it; else the whole text."""
    found = list(_ANSWER_IS.finditer(text))
    return found[-1]["rest"].strip().removesuffix(".") if found else text


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _label(text: str, labels: tuple[str, ...]) -> str:
    bare = text.strip(" \t\n.:;,!?\"'`*()").casefold()
    for label in labels:
        if label.casefold() == bare:
            return label
    # The longest first, so that "not entailment" is not taken for "entailment".
    named = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
    found = re.search(rf"(?<!\w)(?:{named})(?!\w)", text, re.IGNORECASE)
    return next(label for label in labels if label.casefold() == found[0].casefold()) if found else ""


def _number(text: str) -> str:
    found = _NUMBER.findall(text)
    return found[-1].replace(",", "").replace("\u2212", "-") if found else ""
