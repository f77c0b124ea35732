"""Cheap checks of the examples that a teacher writes. They need no model and give a reason for each rejection.

They detect the faults of a weak teacher: an answer that is not in the passage, a question that gives its answer away
or is about something else, a wrong equation, copies, and evaluation items.
"""

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

from rebase.records import Task
from rebase.tasks.evaluation_items import MIN_SHOWN_WORDS
from rebase.tasks.extraction import BOX, without_conclusion
from rebase.tasks.numbers import plain_math
from rebase.text import (
    NUMBER,
    comparable,
    inside_fences,
    is_python,
    listed_options,
    ngrams,
    normalize,
    runs,
    split_options,
    tokens,
    weight,
)

MAX_SPAN_WORDS = 12
_MAX_DIGITS = 1000
#: From this share of one label a student may learn no other.
ONE_SIDED = 0.9

_STOPWORDS = frozenset(
    tokens("""
    a an and are as at be been by called can did do does for from had has have how if in into is it its many much
    name named of on or that the their there they this to was were what when where which who whom whose why will  with
    would you your
    """)
)
# Not a line break: the next line may start with a bullet.
_GAP = r"[^\S\n]*+"
# Atomic groups: Python 3.11.2, Debian 12's, keeps what a possessive group has read before it fails ("6 * 8**").
_TERM = r"\(*+-?\d++(?>(?:,\d++)*)(?>(?:\.\d++)?)%?\)*+"
_EXPRESSION = re.compile(rf"{_TERM}(?P<more>(?>(?:{_GAP}[-+*/×÷]{_GAP}{_TERM})*))")
_EQUALS = re.compile(r"\s*=\s*")
#: Characters around an expression that show whether it is a part of a longer one.
_NEAR = 40
# The expression is the end of a longer one: 2^3 + 1, 7:30 + 45, 2x + 3 + 4, half of 6 + 2.
_STARTS_EARLIER = re.compile(
    rf"(?:[\w.^:)√]|(?<=[^\s*]){_GAP}[-+*/×÷^·]{_GAP}|[\d)]{_GAP}(?:x|\*\*){_GAP}|\b(?:of|times){_GAP})$"
)
# The expression is the beginning of a longer one: 8:15, 2 1/2, 40 apples + 8 apples, 4 remainder 1.
_CONTINUES = re.compile(
    rf"[²³^]|\(\d|:\d|{_GAP}\d|{_GAP}[^\W\d]*{_GAP}[-+*/×÷·]{_GAP}\(?-?\d|{_GAP}(?:[rR]{_GAP}\d|remainder\b|with\b)"
)
# The right side of an equation whose left side may have other terms: x = 18, f(2) = 3 * 6, 5 owls + 13 owls = 18 owls.
_RIGHT_SIDE = re.compile(rf"=\s*({_EXPRESSION.pattern})(?!\w|{_CONTINUES.pattern})")
_OPERATORS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class ProtectedTexts:
    """What an example must not repeat: the queries of the evaluation set, and the examples in the prompt.

    ``evaluation`` and ``shown`` are ``comparable`` texts; ``shown`` has the queries of the task's examples and each
    field that the teacher writes, unless it is short: many queries can be about one product. ``shown_fields`` has all
    such fields of each example, and ``shown_options`` its options, if no two examples have the same ones. The runs are
    hashes of all runs of ``ngram`` words in the evaluation queries and in the task's examples.
    """

    def __init__(self, task: Task, evaluation_queries: Iterable[str], ngram: int) -> None:
        queries = list(dict.fromkeys(evaluation_queries))
        self.evaluation = set(map(comparable, queries))
        self.shown = {comparable(task.render_query(example)) for example in task.examples}
        written = [{name: example[name] for name in task.written_fields} for example in task.examples]
        self.shown |= {comparable(text) for fields in written for text in fields.values() if _is_long(text)}
        self.shown_fields = [{name: comparable(text) for name, text in fields.items()} for fields in written]
        options = [_options(task, example) for example in task.examples]
        differ = 1 < len(options) == len({frozenset(texts) for texts in options})
        self.shown_options = {*options} - {()} if differ else set()
        self.ngram = ngram
        self.evaluation_runs = _runs(queries, ngram) if task.passage else _content([[text] for text in queries], ngram)
        self.example_runs = _content([example.values() for example in task.examples], ngram)


def tidy_answer(task: Task, fields: Mapping[str, str], answer: str) -> str:
    """Normalize an answer: a span as the passage spells it, a label as the task spells it, a number or code alone."""
    answer = inside_fences(answer)[0] if task.answer.type == "code" else answer.strip()
    match task.answer.type:
        case "span":
            return _spelled_in(_passage(task, fields), answer.strip("\"'“”").rstrip(".").strip())
        case "label":
            return next((label for label in task.answer.labels if label.casefold() == answer.casefold()), answer)
        case "number" if (number := _as_number(answer.rstrip("."))) is not None:
            is_whole = number.denominator == 1
            return str(number.numerator) if is_whole else answer.rstrip(".").replace(",", "").lstrip("+")
    return answer


def _spelled_in(passage: str, answer: str) -> str:
    """The answer as the passage spells it: as words before parts of words, and in the answer's case before others."""
    part = re.escape(answer)
    for pattern, flags in product((rf"(?<!\w){part}(?!\w)", part), (0, re.IGNORECASE)):
        if span := re.search(pattern, passage, flags):
            return span.group()
    return answer


def reject_example(task: Task, fields: Mapping[str, str], answer: str, protected: ProtectedTexts) -> str | None:
    """Why the example is rejected; None if it is kept. ``answer`` is tidied."""
    return reject_input(task, fields, protected, answer) or reject_answer(task, fields, answer)


def reject_answer(task: Task, fields: Mapping[str, str], answer: str) -> str | None:
    """Why an answer to a query that passed is rejected; None if it is kept. ``answer`` is tidied."""
    if not answer.strip():
        return "empty"
    query = comparable(task.render_query(fields))
    match task.answer.type:
        case "span":
            return _reject_span(task, fields, answer)
        case "label" if answer not in task.answer.labels:
            return "unknown_label"
        case "label" if task.lists_options and answer.strip("()") not in listed_options(task.render_query(fields)):
            return "no_such_option"
        case "number" if _as_number(answer) is None:
            return "not_a_number"
        case "code" if comparable(answer) == query or (task.answers_python and not is_python(answer)):
            return "not_code"
        case "text" if comparable(answer) == query:
            return "repeats_query"
    return None


def reject_input(task: Task, fields: Mapping[str, str], protected: ProtectedTexts, answer: str = "") -> str | None:
    """Why a query with these fields is rejected, whatever its answer is: None if it is kept."""
    if not all(fields[name].strip() for name in task.query_fields):
        return "empty"
    if task.lists_options and len(listed_options(task.render_query(fields))) < 2:
        return "no_options"
    query = comparable(task.render_query(fields))
    if query in protected.evaluation:
        return "equals_evaluation_item"
    written = {name: comparable(fields[name]) for name in task.written_fields}
    if written in protected.shown_fields or not protected.shown.isdisjoint({query, *written.values()}):
        return "copies_prompt_example"
    if protected.shown_options and _options(task, fields) in protected.shown_options:
        return "copies_prompt_example"
    return "overlaps_evaluation" if _overlaps(task, fields, answer, protected) else None


def _options(task: Task, fields: Mapping[str, str]) -> tuple[str, ...]:
    """The comparable options of a query."""
    return tuple(map(comparable, split_options(task.render_query(fields))[2]))


def gives_answers_away(task: Task, examples: Sequence[tuple[Mapping[str, str], str]]) -> bool:
    """Whether most queries state their answer: the label, and no other one, or the number.

    Columns beside the answer may explain it ("It is neutral because …"). An audit rewards that: the teacher reads the
    answer. In the other tasks, in passages and among options, the answer may well be a part of the query.
    """
    is_number = task.answer.type == "number" and not task.passage
    if task.lists_options or not (task.answer.labels or is_number):
        return False
    stated = sum(_states_answer(task, "\n".join(fields.values()), answer) for fields, answer in examples)
    return stated > len(examples) / 2


def _states_answer(task: Task, text: str, answer: str) -> bool:
    if not task.answer.labels:
        return answer in {number.group().replace(",", "") for number in NUMBER.finditer(text)}
    words, stated = f" {normalize(text)} ", []
    # The longest first, so that "not toxic" does not state "toxic".
    for label in sorted(task.answer.labels, key=len, reverse=True):
        name = f" {normalize(label)} "
        if name in words:
            stated.append(label)
            words = words.replace(name, " ")
    return stated == [answer]


def names_label(label: str, texts: Iterable[str]) -> bool:
    """Whether one of the texts has a word that begins like the label ("Sports" for ``sport``)."""
    stem = normalize(label)
    return any(f" {stem}" in f" {normalize(text)}" for text in texts)


def label_balance(labels: Sequence[str], answers: Iterable[str]) -> dict[str, Any]:
    """The count of each label, the share of the most frequent one, and the labels that are never an answer."""
    answer_counts = Counter(answers)
    counts = {label: answer_counts[label] for label in labels}
    return {
        "counts": counts,
        "largest_share": max(counts.values()) / max(1, sum(counts.values())),
        "missing": [label for label in labels if not counts[label]],
    }


def one_sided(counts: Mapping[str, int]) -> str:
    """A warning if nearly all examples have one label, by the count of each; else an empty text."""
    label, total = max(counts, key=lambda name: counts[name]), sum(counts.values())
    if not total or counts[label] < ONE_SIDED * total:
        return ""
    return f"{counts[label]} of {total} examples have the label {label}: a student may learn no other."


def reject_rationale(task: Task, rationale: str, answer: str) -> str | None:
    """Why a rationale for this answer is rejected: it is empty, has a wrong equation, or reaches another answer.

    A number must be the result of an equation: of numbers (``48 - 30 = 18``), or of other terms (``x = 18``).
    """
    if not without_conclusion(rationale):
        return "empty_rationale"
    calculations = equations(rationale)
    if not all(is_true for _, is_true in calculations):
        return "wrong_equation"
    stated = stated_answer(rationale)
    if stated is not None and not same_answer(stated, answer):
        return "states_another_answer"
    if task.answer.type == "number":
        results = {result for result, _ in calculations}
        results |= {_compute(match[1]) for match in _RIGHT_SIDE.finditer(_bare(rationale))}
        if _as_number(answer) not in results - {None}:
            return "answer_not_derived"
    return None


def equations(text: str) -> list[tuple[Fraction | None, bool]]:
    """The result of each equation of numbers, such as ``6 * 8 = 48``, in order, and whether it is true.

    ``6 * 8 = 40 + 8 = 48`` has two equations with the result 48. Currency signs and LaTeX are ignored. An equation
    counts as true if a side is a percentage, is a part of a longer expression (``2x + 3 + 4``) or cannot be computed; a
    result that cannot be computed is None.
    """
    bare = _bare(text)
    return [
        (_compute(right.group()), _is_true(left, right))
        for left, right in pairwise(_EXPRESSION.finditer(bare))
        if left["more"] and _EQUALS.fullmatch(bare, left.end(), right.start())
    ]


def _bare(text: str) -> str:
    """The text without currency signs and LaTeX, its minus signs as hyphens."""
    return re.sub(r"[$£€]\s?", "", BOX.sub(r"\g<content>", plain_math(text))).replace("\u2212", "-")


def stated_answer(rationale: str) -> str | None:
    """The answer that the rationale states at its end ("So the answer is X."); None if it states none."""
    stated = re.findall(r"\banswer is:?\s+((?:[^.?!]|\.(?=\d))+)[.!]?\s*$", rationale, re.IGNORECASE)
    return stated[-1].strip() if stated else None


def same_answer(one: str, other: str) -> bool:
    """Whether two answers agree: as numbers if both are numbers, else as texts without regard to case and spacing."""
    left, right = _as_number(one), _as_number(other)
    if left is not None and right is not None:
        return left == right
    return comparable(one) == comparable(other)


def agrees(task: Task, fields: Mapping[str, str], one: str, other: str) -> bool:
    """Whether two answers to the query with these fields agree.

    Numbers are compared by value, labels and texts normalized, code without spacing. One of two spans may contain the
    other: "the purser" and "purser", but not "3" and "3.5".
    """
    one, other = (tidy_answer(task, fields, answer) for answer in (one, other))
    if one == other or task.answer.type == "code":
        return one.split() == other.split()
    if task.answer.type != "span":
        return bool(comparable(one).strip()) and same_answer(one, other)
    short, long = sorted((normalize(one), normalize(other)), key=len)
    if not short or len(long.split()) > MAX_SPAN_WORDS or f" {short} " not in f" {long} ":
        return False
    # "1990-95" does not contain -95.
    fewer, more = sorted(({number.lstrip("+-") for number in NUMBER.findall(text)} for text in (one, other)), key=len)
    return fewer <= more


def _is_long(text: str) -> bool:
    return weight(tokens(text)) >= MIN_SHOWN_WORDS


def _runs(texts: Iterable[str], n: int) -> set[int]:
    """Hashes of all runs of ``n`` words in the texts."""
    return {hash(run) for text in texts for run in runs(tokens(text), n)}


def _content(items: Sequence[Iterable[str]], n: int) -> set[int]:
    """Hashes of the runs of ``n`` words in the items' texts, without those that more than half of the items share."""
    counts = Counter(run for texts in items for run in _runs(texts, n))
    return {run for run, count in counts.items() if count == 1 or 2 * count <= len(items)}


def _overlaps(task: Task, fields: Mapping[str, str], answer: str, protected: ProtectedTexts) -> bool:
    """Whether a field or the answer shares a run of words with the evaluation set or with the task's examples.

    Each is compared alone, because every item has the words of the query template. A passage is not written by the
    teacher and may share words with the examples.
    """
    written = _runs([answer, *(fields[name] for name in task.written_fields)], protected.ngram)
    passage = _runs([fields[task.passage]] if task.passage else [], protected.ngram)
    return bool(protected.evaluation_runs & (written | passage) or protected.example_runs & written)


def _reject_span(task: Task, fields: Mapping[str, str], answer: str) -> str | None:
    if len(answer.split()) > MAX_SPAN_WORDS:
        return "answer_too_long"
    passage = _passage(task, fields)
    if f" {normalize(answer)} " not in f" {normalize(passage)} ":
        return "answer_not_in_passage"
    question = " ".join(fields[name] for name in task.written_fields)
    if task.passage is None or not question:
        return None
    if f" {normalize(answer)} " in f" {normalize(question)} ":
        return "answer_given_away"
    if not question.rstrip().endswith(("?", "？")):
        return "not_a_question"
    words = tokens(question)
    if len(set(ngrams(words, 3))) < max(0, len(words) - 2):
        return "question_repeats_itself"
    stems = _stems(question)
    if stems and not stems & _stems(passage):
        return "question_off_passage"
    if stems and stems <= _stems(answer):
        return "answer_given_away"
    has_digit = any(letter.isdigit() for letter in answer)
    if has_digit and re.match(r"(?:who|why)\b", question, re.IGNORECASE):
        return "question_word_mismatch"
    return None


def _passage(task: Task, fields: Mapping[str, str]) -> str:
    """The text that a span is taken from: the passage field, or all fields if the task has no passage."""
    return fields[task.passage] if task.passage else " ".join(fields[name] for name in task.query_fields)


def _stems(text: str) -> set[str]:
    """The beginnings of the content words, so that ``measure`` matches ``measured``."""
    return {token[:5] for token in tokens(text) if token not in _STOPWORDS}


def _as_number(text: str) -> Fraction | None:
    """The number that the text is; None for other texts, and for more digits than Python reads (4,300)."""
    text = text.strip()
    return Fraction(text.replace(",", "")) if len(text) <= _MAX_DIGITS and NUMBER.fullmatch(text) else None


def _is_true(left: re.Match[str], right: re.Match[str]) -> bool:
    """Whether both sides of an equation are equal, or cannot be judged (``equations``)."""
    value, result = _compute(left.group()), _compute(right.group())
    before, after = left.string[: left.start()][-_NEAR:], right.string[right.end() :][:_NEAR]
    is_part = _STARTS_EARLIER.search(before) or _CONTINUES.match(after)
    if value is None or result is None or is_part or "%" in left.group() + right.group():
        return True
    # A rounded result is right to the digits that it shows; an expression may have several rounded terms.
    digits = len(right.group().rstrip(")").partition(".")[2])
    if digits and right["more"]:
        return True
    return abs(value - result) <= (Fraction(1, 2 * 10**digits) if digits else 0)


def _compute(expression: str) -> Fraction | None:
    """The exact value of an expression, without regard to an outer parenthesis that it does not open and close."""
    unclosed = expression.count("(") - expression.count(")")
    text = expression.removeprefix("(" * unclosed).removesuffix(")" * -unclosed)
    for sign, operation in ((",", ""), ("%", ""), ("×", "*"), ("÷", "/")):
        text = text.replace(sign, operation)
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, KeyError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Fraction:
    """The exact value of an expression of plain numbers. Raises ValueError or KeyError if it is another one."""
    match node:
        case ast.Constant(value=int() | float()):
            return Fraction(str(node.value))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_value(left), _value(right))
    raise ValueError("not an expression of plain numbers")
