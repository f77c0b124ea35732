"""Extract the answer from a model's raw output. Extraction does not know the references."""

import re

from rebase.records import AnswerSpec

# Rationales end with "So the answer is X."; models that explain their answers use similar words.
_ANSWER_IS = re.compile(r"\banswer\s+is\s*:?\s*", re.IGNORECASE)
# Words that lead to it.
_LEADS_TO_ANSWER = re.compile(r"(?:\b(?:so|thus|hence|therefore),?\s+)?(?:\bthe\s+(?:\w+\s+)?)?\Z", re.IGNORECASE)
# An option's letter at the beginning, as in "B) because"; "A dog" and "I do" begin with words.
_OPTION = re.compile(r"[\W_]*(?P<letter>[A-Z])(?![\w'’-])(?!(?<=[AI])\s+(?!because|since)[a-z])")
_NUMBER = re.compile(r"(?<![\w.])[-\u2212]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])[-\u2212]?\.\d+")
_FENCE = re.compile(r"```[^\n]*\n(?P<code>.*?)(?:```|\Z)", re.DOTALL)


def extract(raw_output: str, answer: AnswerSpec) -> str:
    """Return the answer in ``raw_output``, by the task's answer type; empty if there is none.

    - ``span``: what follows the last "answer is", else the first line.
    - ``label``: the label that the answer consists of, else the first label in it. For labels such as ``(A)`` the
      letter is enough if the answer consists of it or begins with it.
    - ``number``: the last number after the last "answer is", else the last number; without thousands separators.
    - ``code``: the inside of the first code fence, else everything.
    - ``text``: what follows "answer is" if that ends the text, else everything.
    """
    text = raw_output.strip()
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
    """Return the label that the text consists of, without regard to case and punctuation around it; empty if none."""
    return next((label for label in labels if _bare(label) == _bare(text)), "")


def split_conclusion(text: str) -> tuple[str, str] | None:
    """Split a rationale into its steps and the final "So the answer is X."; None if there is no such end."""
    starts = [match.start() for match in _ANSWER_IS.finditer(text)]
    if not starts:
        return None
    steps = _LEADS_TO_ANSWER.sub("", text[: starts[-1]], count=1)
    return steps.strip(), text[len(steps) :].strip()


def _conclusion(text: str) -> int:
    """The position after the last "answer is"; 0 if there is none."""
    return max((match.end() for match in _ANSWER_IS.finditer(text)), default=0)


def _concluded(text: str) -> str:
    """The rest of the line after the last "answer is", without its final period; else the whole text."""
    start = _conclusion(text)
    return text[start:].partition("\n")[0].strip().removesuffix(".").rstrip() if start else text


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _label(text: str, labels: tuple[str, ...]) -> str:
    if label := as_label(text, labels):
        return label
    # The longest label first, so that "not entailment" is not read as "entailment".
    pattern = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
    if match := re.search(rf"(?<!\w)(?:{pattern})(?!\w)", text, re.IGNORECASE):
        return next(label for label in labels if label.casefold() == match[0].casefold())
    option = _OPTION.match(text)
    return f"({option['letter']})" if option and f"({option['letter']})" in labels else ""


def _bare(label: str) -> str:
    return label.strip(" \t\n.:;,!?\"'`*()").casefold()


def _number(text: str) -> str:
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace(",", "").replace("\u2212", "-") if numbers else ""
