"""Which examples a teacher's response may become: cheap checks that need no model, a reason for each rejection.

They meet a weak teacher's faults without another teacher: an answer that is not in the passage, a question that
gives its answer away or asks about something else, a sum that does not add up, copies, and evaluation items.
"""

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rebase.records import Task
from rebase.text import comparable, ngrams, normalize, runs, tokens

MAX_SPAN_WORDS = 12
#: From this share on nearly all examples have one label.
ONE_SIDED = 0.9

_STOPWORDS = frozenset(
    tokens("""
    a an and are as at be been by called can did do does for from had has have how if in into is it its many much
    name named of on or that the their there they this to was were what when where which who whom whose why will  with
    would you your
    """)
)
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
_TERM = r"\(?-?\d[\d,]*(?:\.\d+)?\)?"
_EQUATION = re.compile(rf"(?P<left>{_TERM}(?:\s*[-+*/×÷]\s*{_TERM})+)\s*=\s*(?P<right>-?\d[\d,]*(?:\.\d+)?)")
_OPERATORS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Known:
    """What an example must not repeat: queries of the evaluation set, and the prompt's own examples.

    ``evaluation`` and ``copied`` are texts as ``comparable`` has them; ``copied`` holds the examples' queries and each
    of the fields that the teacher writes. The runs are hashes of all runs of ``ngram`` words: in the evaluation set's
    queries, and in the prompt's examples.
    """

    evaluation: frozenset[str]
    copied: frozenset[str]
    ngram: int
    evaluation_runs: frozenset[int]
    example_runs: frozenset[int]

    @classmethod
    def of(cls, task: Task, evaluation_queries: Iterable[str], ngram: int) -> "Known":
        """Gather what the task's examples and its evaluation set say."""
        queries = list(evaluation_queries)
        copied = {comparable(task.render_query(example)) for example in task.examples}
        copied |= {comparable(example[name]) for example in task.examples for name in task.written_fields}
        told = [text for example in task.examples for text in example.values()]
        return cls(
            frozenset(map(comparable, queries)), frozenset(copied), ngram, _runs(queries, ngram), _runs(told, ngram)
        )


def tidy_answer(task: Task, fields: Mapping[str, str], answer: str) -> str:
    """The answer as it is kept: a span in the passage's own spelling, a label as the task spells it, a bare number."""
    answer = answer.strip("\n") if task.answer.type == "code" else answer.strip()
    match task.answer.type:
        case "span":
            answer = answer.strip("\"'“”").rstrip(".").strip()
            found = re.search(re.escape(answer), _passage(task, fields), re.IGNORECASE) if answer else None
            return found.group() if found else answer
        case "label":
            return next((label for label in task.answer.labels if label.casefold() == answer.casefold()), answer)
        case "number":
            return _tidy_number(answer)
    return answer


def reject_example(task: Task, fields: Mapping[str, str], answer: str, known: Known) -> str | None:
    """Why the example is rejected; None where it may be kept. ``answer`` is tidied."""
    if not answer.strip() or not all(fields[name].strip() for name in task.query_fields):
        return "empty"
    query = comparable(task.render_query(fields))
    if query in known.evaluation:
        return "equals_evaluation_item"
    if query in known.copied or any(comparable(fields[name]) in known.copied for name in task.written_fields):
        return "copies_prompt_example"
    if _overlaps(task, fields, answer, known):
        return "overlaps_evaluation"
    match task.answer.type:
        case "span":
            return _reject_span(task, fields, answer)
        case "label":
            return None if answer in task.answer.labels else "unknown_label"
        case "number":
            return None if _NUMBER.fullmatch(answer) else "not_a_number"
        case "code":
            return "not_code" if comparable(answer) == query else None
        case "text":
            return "repeats_query" if comparable(answer) == query else None


def names_label(label: str, texts: Iterable[str]) -> bool:
    """If one of the texts names the label: by a word that begins as the label does ("Sports" for ``sport``)."""
    stem = normalize(label)
    return any(f" {stem}" in f" {normalize(text)}" for text in texts)


def label_balance(labels: Sequence[str], answers: Iterable[str]) -> dict[str, Any]:
    """How often each label is an answer, the share of the most frequent one, and the labels that never are."""
    counted = Counter(answers)
    counts = {label: counted[label] for label in labels}
    return {
        "counts": counts,
        "largest_share": max(counts.values()) / max(1, sum(counts.values())),
        "missing": [label for label in labels if not counts[label]],
    }


def one_sided(counts: Mapping[str, int]) -> str:
    """What is to be said where nearly all examples have one label, by the counts of each; nothing elsewhere."""
    label, whole = max(counts, key=lambda name: counts[name]), sum(counts.values())
    if not whole or counts[label] < ONE_SIDED * whole:
        return ""
    return f"{counts[label]} of {whole} examples have the label {label}: a student may learn no other."


def reject_rationale(task: Task, rationale: str, answer: str) -> str | None:
    """Why a rationale for this answer is rejected: empty, a wrong sum in it, or an answer that it does not reach.

    The answer of a calculation must be the result of one of the rationale's equations.
    """
    if not rationale.strip():
        return "empty_rationale"
    found = equations(rationale)
    if not all(equation.is_true for equation in found):
        return "wrong_equation"
    stated = stated_answer(rationale)
    if stated is not None and not same_answer(stated, answer):
        return "states_another_answer"
    if task.answer.type == "number" and not any(same_answer(equation.result, answer) for equation in found):
        return "answer_not_derived"
    return None


@dataclass(frozen=True)
class Equation:
    """An equation between plain numbers, such as ``6 * 8 = 48``: its result and if it is true."""

    result: str
    is_true: bool


def equations(text: str) -> list[Equation]:
    """The equations between plain numbers in the text, in order. Signs of currency are passed over."""
    bare = re.sub(r"[$£€]\s?", "", text)
    return [Equation(match["right"], not _is_false(match)) for match in _EQUATION.finditer(bare)]


def stated_answer(rationale: str) -> str | None:
    """The answer that the rationale states at its end: "So the answer is X."; None where it states none."""
    found = re.findall(r"\banswer is:?\s+((?:[^.?!]|\.(?=\d))+)[.!]?\s*$", rationale, re.IGNORECASE)
    return found[-1].strip() if found else None


def same_answer(one: str, other: str) -> bool:
    """If two answers agree: as numbers where both are numbers, else as texts, whatever their case and spacing."""
    left, right = _as_number(one), _as_number(other)
    if left is not None and right is not None:
        return left == right
    return comparable(one) == comparable(other)


def agrees(task: Task, fields: Mapping[str, str], one: str, other: str) -> bool:
    """If two answers to the query with these fields come to the same.

    Numbers by value, labels and texts normalized, code but for its spacing. Of two spans one may contain the other:
    "the purser" and "purser", but not "3" and "3.5".
    """
    one, other = (tidy_answer(task, fields, answer) for answer in (one, other))
    if one == other or task.answer.type == "code":
        return one.split() == other.split()
    short, long = sorted((normalize(one), normalize(other)), key=len)
    if not short or task.answer.type != "span":
        return bool(short) and same_answer(one, other)
    if len(long.split()) > MAX_SPAN_WORDS or f" {short} " not in f" {long} ":
        return False
    less, more = sorted((_numbers(one), _numbers(other)), key=len)
    return less <= more


def _numbers(text: str) -> set[str]:
    """The numbers in the text, without their signs: "1990-95" holds no -95."""
    return {number.lstrip("+-") for number in _NUMBER.findall(text)}


def _runs(texts: Iterable[str], n: int) -> frozenset[int]:
    """Hashes of all runs of ``n`` words in the texts."""
    return frozenset(hash(run) for text in texts for run in runs(tokens(text), n))


def _overlaps(task: Task, fields: Mapping[str, str], answer: str, known: Known) -> bool:
    """If one of the fields, or the answer, shares a run of words with the evaluation set or with the prompt's examples.

    Each is compared by itself: the words of the query's template stand in every item. A passage of the row may share
    its words with the examples', for it is not written.
    """
    written = _runs([answer, *(fields[name] for name in task.written_fields)], known.ngram)
    given = _runs([fields[task.passage]] if task.passage else [], known.ngram)
    return not known.evaluation_runs.isdisjoint(written | given) or not known.example_runs.isdisjoint(written)


def _reject_span(task: Task, fields: Mapping[str, str], answer: str) -> str | None:
    if len(answer.split()) > MAX_SPAN_WORDS:
        return "answer_too_long"
    passage = _passage(task, fields)
    if f" {normalize(answer)} " not in f" {normalize(passage)} ":
        return "answer_not_in_passage"
    asked = " ".join(fields[name] for name in task.written_fields)
    if task.passage is None or not asked:
        return None
    if f" {normalize(answer)} " in f" {normalize(asked)} ":
        return "answer_given_away"
    if not asked.rstrip().endswith(("?", "？")):
        return "not_a_question"
    return _reject_question(asked, answer, passage)


def _reject_question(question: str, answer: str, passage: str) -> str | None:
    """A question must share a word with the passage, and its question word must fit the answer."""
    words = tokens(question)
    if len(set(ngrams(words, 3))) < max(0, len(words) - 2):
        return "question_repeats_itself"
    asked = _stems(question)
    if asked and not asked & _stems(passage):
        return "question_off_passage"
    if asked and asked <= _stems(answer):
        return "answer_given_away"
    has_digit = any(letter.isdigit() for letter in answer)
    if has_digit and re.match(r"(?:who|why)\b", question, re.IGNORECASE):
        return "question_word_mismatch"
    return None


def _passage(task: Task, fields: Mapping[str, str]) -> str:
    """The text that a span is taken from: the passage field, or all fields where the task names none."""
    return fields[task.passage] if task.passage else " ".join(fields[name] for name in task.query_fields)


def _stems(text: str) -> set[str]:
    """The beginnings of the words that carry meaning: enough to match ``measure`` with ``measured``."""
    return {token[:5] for token in tokens(text) if token not in _STOPWORDS}


def _tidy_number(answer: str) -> str:
    number = _as_number(answer.rstrip("."))
    if number is None:
        return answer
    return str(number.numerator) if number.denominator == 1 else answer.rstrip(".").replace(",", "").lstrip("+")


def _as_number(text: str) -> Fraction | None:
    text = text.strip()
    return Fraction(text.replace(",", "")) if _NUMBER.fullmatch(text) else None


def _is_false(equation: re.Match[str]) -> bool:
    left = equation["left"].replace(",", "").replace("×", "*").replace("÷", "/")
    value = _evaluate(left)
    if value is None:
        return False
    right = equation["right"].replace(",", "").rstrip(".")
    # A rounded result is right to the digits that it shows.
    digits = len(right.partition(".")[2])
    return abs(value - Fraction(right)) > (Fraction(1, 2 * 10**digits) if digits else 0)


def _evaluate(expression: str) -> Fraction | None:
    """The value of a sum of plain numbers, exactly; None where it is malformed or divides by zero."""
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, KeyError):
        return None


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float()):
            return Fraction(str(node.value))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_value(left), _value(right))
    raise ValueError("not a sum of plain numbers")
