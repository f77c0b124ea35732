"""Extract the answer from a model's raw output. Extraction does not know the references.

The shapes are those that lm-evaluation-harness, OpenCompass and simple-evals accept, except where these are known to
read a value that the model did not mean. ``tests/tasks/test_extraction.py`` lists them by answer type.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain

from rebase.records import AnswerSpec
from rebase.tasks.numbers import plain_math, stated_number, unstated_number
from rebase.text import CONCLUSION, inside_fences

# Rationales end with "So the answer is X."; models that explain their answers use similar words.
_ANSWER_IS = re.compile(r"\banswer\s+is\s*:?\s*", re.IGNORECASE)
# Words that lead to it.
_LEADS_TO_ANSWER = re.compile(r"(?P<so>\b(?:so|thus|hence|therefore),?\s+)?(?:\bthe\s+(?:\w+\s+)?)?\Z", re.IGNORECASE)
_SENTENCE_BEGINS = re.compile(r"(?:\A|[.:;!?\n])\W*\Z")
# What comes before a stated answer. The plain prompt writes "Answer:" on a separate line, so a base model that appends
# questions writes it too: on a separate line it counts only at the beginning of the output.
_STATEMENT = re.compile(
    r"""\banswer(?:\s+to\s+[^.\n]{1,80}?)?\s+(?:is|was|(?:should|must|would|will)\s+be)(?!\w)[\s*:]*
    | \b(?:correct|right|best)\s+(?:option|choice|letter)\s+is(?!\w)[\s*:]*
    | \b(?:answer|antwort|respuesta|réponse|resposta|risposta)[ \t*]*:[ \t*]*(?=\S)
    | \A[\W_]*answer[\s*]*:[\s*]*
    | ^[^\w\n]*final\s+answer[ \t*]*:?[ \t*]*\n\s*
    | \#{4} | <answer>
    | 答案(?:应该)?[是为选]?\s*[:：]?\s* | (?:答え|正解)\s*[は:：]\s*""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
#: LaTeX's frame around an answer.
BOX = re.compile(r"\\f?box(?:ed)?\s*\{(?P<content>(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
# Where a base model appends another question.
_NEXT_QUESTION = re.compile(r"\n[ \t]*(?:question|problem|q)\s*\d*\s*:|\n[ \t]*\nanswer:\s*\n", re.IGNORECASE)
# Where a sentence comments on the span that was stated before it. 9 % of an untrained student's statements have such a
# comment; 0.05 % of SQuAD's references have such a second sentence.
_COMMENT = re.compile(r"(?<=\w)\.\s+(?:It|This|That|The|He|She|They|These|In|I|We|So)\b")

# Emphasis, quotes and LaTeX.
_WRAPPED = re.compile(r"(?:\*\*|[*_`\"“$]|\\text\w*\{)(?P<inside>[^*`\"“”$]+)(?:\*\*|[*_`\"”$}])\.?")

_THOUGHTS = r"(?:<(?:think|thinking|thought|reasoning)>|\[THINK\])"
_THOUGHTS_END = r"(?:</(?:think|thinking|thought|reasoning)>|\[/THINK\])"

# An option's letter at the beginning, as in "B) because". "A dog" and "I do" begin with words; "C is wrong" rejects C.
_OPTION_FIRST = re.compile(
    r"\A[\W_]*(?P<letter>[A-Z])(?![\w'’-])(?!(?<=[AI])\s+(?!because|since)[a-z])"
    r"(?!\W*\s(?:is|are|was)\s*(?:not|n['’]t|wrong|incorrect|false)\b)"
)
_OPTION_IS_RIGHT = re.compile(
    r"(?<!\w)(?P<letter>[A-Z])\W*\s(?:is|seems)\s+(?:the\s+)?(?:only\s+|most\s+)?"
    r"(?:correct|right|best|true|answer|appropriate)\b"
)
_OPTION_IN_BRACKETS = re.compile(r"\((?P<letter>[A-Za-z])\)")
_OPTION_NAMED = re.compile(
    r"(?:\b(?:[Oo]ption|[Cc]hoice|[Ll]etter|[Cc]hoose|[Pp]ick|[Ss]elect)\s+|选项?\s*)\W?(?P<letter>[A-Z])(?![\w'’-])"
)
_NEGATION = re.compile(
    r"(?:(?:\b(?:not|cannot|no|neither|nor|rather\s+than|instead\s+of)|n['’]t)\s+|\bnon-)(?:be\s+)?(?:an?\s+|the\s+)?\W*\Z",
    re.IGNORECASE,
)


def extract(raw_output: str, answer: AnswerSpec) -> str:
    """Return the answer in ``raw_output``, by the task's answer type; empty if there is none.

    Thoughts (``<think>...</think>``) are removed first. An answer is *stated* after "answer is", "Answer:", ``####`` or
    ``<answer>``, or in a LaTeX box; of several statements the last one that holds an answer counts.

    - ``span``: what is stated, else the first line.
    - ``label``: the label that is stated, else the line that is a label, else the first label named. Of labels such as
      ``(A)`` the letter suffices where the text shows that it means the option.
    - ``number``: the number that is stated, else the last one; without separators, currency and exponent.
    - ``code``: the inside of the first code fence, else what follows "So the answer is", else everything.
    - ``text``: what follows "So the answer is", or a last sentence "The answer is …", else everything.
    """
    text = remove_thoughts(raw_output).strip()
    match answer.type:
        case "span":
            return _span(text)
        case "label":
            read_label = partial(_label, labels=answer.labels)
            return _search(text, read_label, read_label)
        case "number":
            return _search(text, stated_number, unstated_number)
        case "code":
            return inside_fences(_after_conclusion(text) or text)[0]
        case "text":
            return _text(text)


def remove_thoughts(raw_output: str) -> str:
    """Return the output without the blocks in which a reasoning model thinks, also without one that never ends.

    Some chat templates write the opening tag into the prompt: then all before the closing tag is thought.
    """
    flags = re.DOTALL | re.IGNORECASE
    text = re.sub(rf"{_THOUGHTS}.*?(?:{_THOUGHTS_END}|\Z)", "", raw_output, flags=flags)
    return re.sub(rf"\A.*{_THOUGHTS_END}", "", text, flags=flags)


def as_label(text: str, labels: tuple[str, ...]) -> str:
    """Return the label that the text consists of; empty if none.

    Case and punctuation around it count only where labels differ in nothing else, such as ``A`` and ``A*``.
    """
    if text.strip() in labels:
        return text.strip()
    bare_text, *bare_labels = (part.strip(" \t\n.:;,!?\"'`*()").casefold() for part in (text, *labels))
    return labels[bare_labels.index(bare_text)] if bare_text and bare_labels.count(bare_text) == 1 else ""


def named_labels(text: str, labels: tuple[str, ...]) -> set[str]:
    """Return every label that the text names, or gives as an option's letter, unless it is negated."""
    return {as_label(text, labels), *_named_labels(text, labels), *_options(text, _option_letters(labels))} - {""}


def split_conclusion(text: str) -> tuple[str, str] | None:
    """Split a rationale into its steps and the final "So the answer is X."; None if there is no such end."""
    starts = [match.start() for match in _ANSWER_IS.finditer(text)]
    if not starts:
        return None
    steps = _LEADS_TO_ANSWER.sub("", text[: starts[-1]], count=1)
    return steps.strip(), text[len(steps) :].strip()


def without_conclusion(rationale: str) -> str:
    """Return the rationale without a last sentence that states the answer."""
    rationale = rationale.strip()
    steps, conclusion = split_conclusion(rationale) or (rationale, "")
    begins_sentence = _SENTENCE_BEGINS.search(rationale.removesuffix(conclusion))
    return steps if begins_sentence and not re.search(r"[.?!]\s+\S", conclusion) else rationale


def _search(text: str, read_statement: Callable[[str], str], read_text: Callable[[str], str]) -> str:
    """Return what is read from the last statement that holds an answer, else from the whole text.

    Questions that the model appended, with its answers to them, count only where there is nothing else.
    """
    for part in (_NEXT_QUESTION.split(text, maxsplit=1)[0], text):
        values = map(read_statement, reversed(_statements(part)))
        if value := next(filter(None, values), "") or read_text(part):
            return value
    return ""


def _statements(text: str) -> list[str]:
    """Return what follows each "answer is" and the like on its line, and the content of LaTeX boxes, in order."""
    matches = list(_STATEMENT.finditer(text))
    ends = [*(match.start() for match in matches[1:]), len(text)]
    statements = [(match.start(), _clause(text[match.end() : end])) for match, end in zip(matches, ends, strict=False)]
    statements += [(match.start(), match["content"]) for match in BOX.finditer(text)]
    return [statement for _, statement in sorted(statements)]


def _clause(text: str) -> str:
    """Return the first line, without a closing tag, the full stop that ends it and the end of bold type."""
    line = text.partition("\n")[0].partition("</answer>")[0]
    return line.strip("* \t\r").removesuffix(".").rstrip("* \t")


def _span(text: str) -> str:
    # What ends with a colon announces the answer: "Here it is:", "The answer is as follows:".
    stated = [part for part in _statements(_NEXT_QUESTION.split(text, maxsplit=1)[0]) if part and part[-1] != ":"]
    if stated:
        return _unwrapped(_COMMENT.split(BOX.sub(r"\g<content>", stated[-1]), maxsplit=1)[0])
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _unwrapped(next((line for line in lines if line[-1] != ":"), lines[0] if lines else ""))


def _unwrapped(span: str) -> str:
    """Return the span without emphasis, quotes and LaTeX around all of it."""
    while wrapped := _WRAPPED.fullmatch(span):
        span = wrapped["inside"].strip()
    return span


def _text(text: str) -> str:
    text = re.sub(r"\A[*_#\s]*answer[*\s]*:[*\s]*", "", text, flags=re.IGNORECASE)
    if concluded := _after_conclusion(text):
        return concluded
    start = max((match.end() for match in _ANSWER_IS.finditer(text) if _is_stated(text, match.start())), default=0)
    return text if "\n" in text[start:] or not start else text[start:].strip().removesuffix(".").rstrip()


def _after_conclusion(text: str) -> str:
    """Return what follows the last "So the answer is", as rationales end, without the full stop; empty if nothing."""
    return text.rpartition(CONCLUSION)[2].strip().removesuffix(".").rstrip() if CONCLUSION in text else ""


def _is_stated(text: str, start: int) -> bool:
    """Whether "answer is" begins a sentence or follows "so"; else it belongs to a text such as "She wrote that …"."""
    lead = _LEADS_TO_ANSWER.search(text[:start])
    return lead is not None and bool(lead["so"] or _SENTENCE_BEGINS.search(text[: lead.start()]))


def _label(text: str, labels: tuple[str, ...]) -> str:
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    for part in (text, lines[0], lines[-1]):
        if label := as_label(part, labels):
            return label
    return next(chain(_named_labels(text, labels), _options(text, _option_letters(labels))), "")


def _option_letters(labels: tuple[str, ...]) -> dict[str, str]:
    """The labels that are options, such as ``(A)``, by their letters."""
    return {label.strip("()"): label for label in labels if re.fullmatch(r"[A-Z]|\([A-Z]\)", label)}


def _named_labels(text: str, labels: tuple[str, ...]) -> Iterator[str]:
    # Letters are read as options: "a tie" names no A.
    names = {label: re.escape(label) for label in labels if label not in _option_letters(labels).values()}
    # The longest first, so that "not entailment" is not taken for "entailment".
    pattern = "|".join(sorted(names.values(), key=len, reverse=True))
    for match in re.finditer(rf"(?<!\w)(?:{pattern})(?!\w)", text, re.IGNORECASE) if names else ():
        if not _is_negated(text, match.start()):
            # Case folding would not find the label of "İyi", which is "iyi" here.
            yield next(label for label, name in names.items() if re.fullmatch(name, match[0], re.IGNORECASE))


def _options(text: str, letters: dict[str, str]) -> Iterator[str]:
    """The labels of the letters that the text gives as options, the clearest first; "Vitamin C" gives none."""
    text = re.sub(r"[*`$]", "", plain_math(text))
    for pattern in (_OPTION_IS_RIGHT, _OPTION_FIRST, _OPTION_IN_BRACKETS, _OPTION_NAMED):
        for match in pattern.finditer(text):
            letter = match["letter"].upper()
            if letter in letters and not _is_negated(text, match.start()):
                yield letters[letter]


def _is_negated(text: str, start: int) -> bool:
    return bool(_NEGATION.search(text[max(0, start - 40) : start]))
