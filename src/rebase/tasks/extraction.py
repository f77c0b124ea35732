"""From what a model wrote to its answer. Extraction knows nothing of the right answers and scores nothing."""

import re

from rebase.records import AnswerSpec

# "So the answer is X." is how rationales end here; models that explain themselves say it in such words too.
_ANSWER_IS = re.compile(r"\banswer\s+is\s*:?\s*", re.IGNORECASE)
# Words before it that belong to it.
_LEADS_TO_ANSWER = re.compile(r"(?:\b(?:so|thus|hence|therefore),?\s+)?(?:\bthe\s+(?:\w+\s+)?)?\Z", re.IGNORECASE)
# An option's letter at the beginning, as in "B) because"; "A dog" and "I do" begin with words.
_OPTION = re.compile(r"[\W_]*(?P<letter>[A-Z])(?![\w'’-])(?!(?<=[AI])\s+(?!because|since)[a-z])")
_NUMBER = re.compile(r"(?<![\w.])[-\u2212]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])[-\u2212]?\.\d+")
_FENCE = re.compile(r"```[^\n]*\n(?P<code>.*?)(?:```|\Z)", re.DOTALL)


def extract(raw: str, answer: AnswerSpec) -> str:
    """The answer in ``raw``, by the task's answer type; empty where there is none.

    - ``span``: what follows the last "answer is", else the first line.
    - ``label``: the one label that the answer consists of, else the first label named in it. Of labels such as ``(A)``
      the letter will do, where the answer consists of it or begins with it.
    - ``number``: the last number after the last "answer is", else the last number; without thousands separators.
    - ``code``: the inside of the first code fence, else everything.
    - ``text``: what follows "answer is" where that ends the text, else everything.
    """
    text = raw.strip()
    match answer.type:
        case "span":
            return _first_line(_concluded(text))
        case "label":
            return _label(_concluded(text), answer.labels) or _label(text, answer.labels)
        case "number":
            return _number(_concluded(text)) or _number(text)
        case "code":
            fenced = _FENCE.search(text)
            return (fenced["code"] if fenced else text).strip("\n")
        case "text":
            return _concluded(text) if "\n" not in text[_conclusion(text) :] else text


def as_label(text: str, labels: tuple[str, ...]) -> str:
    """The label that the text consists of, but for case, spacing and punctuation around it; empty where it is none."""
    return next((label for label in labels if _bare(label) == _bare(text)), "")


def split_conclusion(text: str) -> tuple[str, str] | None:
    """A reasoning's steps, and the "So the answer is X." that ends it; None where there is none."""
    starts = [match.start() for match in _ANSWER_IS.finditer(text)]
    if not starts:
        return None
    steps = _LEADS_TO_ANSWER.sub("", text[: starts[-1]], count=1)
    return steps.strip(), text[len(steps) :].strip()


def _conclusion(text: str) -> int:
    """Where what follows the last "answer is" begins; 0 where there is none."""
    return max((match.end() for match in _ANSWER_IS.finditer(text)), default=0)


def _concluded(text: str) -> str:
    """What follows the last "answer is" on its line, without the full stop that ends it; else the whole text."""
    start = _conclusion(text)
    return text[start:].partition("\n")[0].strip().removesuffix(".").rstrip() if start else text


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _label(text: str, labels: tuple[str, ...]) -> str:
    if label := as_label(text, labels):
        return label
    # The longest first, so that "not entailment" is not taken for "entailment".
    named = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
    if found := re.search(rf"(?<!\w)(?:{named})(?!\w)", text, re.IGNORECASE):
        return next(label for label in labels if label.casefold() == found[0].casefold())
    option = _OPTION.match(text)
    return f"({option['letter']})" if option and f"({option['letter']})" in labels else ""


def _bare(label: str) -> str:
    return label.strip(" \t\n.:;,!?\"'`*()").casefold()


def _number(text: str) -> str:
    found = _NUMBER.findall(text)
    return found[-1].replace(",", "").replace("\u2212", "-") if found else ""
