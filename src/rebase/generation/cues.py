"""What a guided teacher writes about: a span of the passage, or the source text of a row.

A weak teacher writes good questions when it is guided: it gets a sentence, the span that is the answer, and how the
question opens (answer-aware question generation: Du and Cardie 2018, Alberti et al. 2019). Spans are dates, quantities,
places, persons and terms that the words around them identify reliably. The patterns are for English.
"""

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rebase.records import Task
from rebase.text import tokens

_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_DAYS = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
_NUMERALS = (
    "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|"
    "seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|"
    "million|billion|half|third|thirds|quarter|quarters|dozen"
)
_FUNCTION_WORDS = frozenset(
    tokens("""
    a an the and or but nor of in on at to for with from by as is was were are be been being has have had it its he
    she they them his her their this that these those which who whom whose what when where while than then so if  not
    no into over under after before until during about i we our your my us would could can may must across  will shall
    should do does did there here also only more most very each every both all any some such plus
    """)
)
_PLACE_WORDS = frozenset(["in", "at", "near", "between"])
_AUXILIARIES = ("did", "was", "were", "is", "are", "does", "do", "will", "can")
#: Verbs after which a name at the start of a clause is a person's.
_VERB = re.compile(r"(?:[a-z]+ed|was|had|who|took|made|wrote|built|found|began|gave|led|won|saw|came)\b")
#: "British", "Roman", "Japanese": before a noun these are not names.
_ADJECTIVE = re.compile(r"(?:ish|ese|an|ch|ic|eek)$")

_NUMERAL = rf"\b(?:{_NUMERALS})\b"
_DIGITS = r"(?<![\w-])\d[\d,.]*(?<![,.])(?![\w-])"
_PLURAL = r"(?:metres|feet|people|men|women|children|mice|sheep|[a-z][a-z-]*s)\b"
_YEAR = re.compile(r"1\d{3}|20\d\d")
_DATE = re.compile(
    rf"(?:\b(?:{_DAYS}),? )?(?:\b\d{{1,2}} )?\b(?:{_MONTHS})\b(?: \d{{4}}\b)?"
    rf"|\b(?:{_DAYS})\b|(?<![\w-])(?:{_YEAR.pattern})\b(?![-,.]\d|-| {_PLURAL})"
)
_QUANTITY = re.compile(
    r"(?:\b(?:about|around|nearly|almost|over|roughly|more than|at least) )?(?:\ba (?=hundred|thousand|million|dozen))?"
    rf"(?P<number>(?:{_DIGITS}|{_NUMERAL})(?:[ -](?:{_NUMERAL}))*)"
    rf"(?P<unit> per cent\b|%| {_PLURAL}| [a-z][a-z-]* {_PLURAL})"
)
_NAME = re.compile(r"\b[A-ZÀ-Þ][\w’'-]+(?: (?:of |de |da |del |la |le |von |van |and )?[A-ZÀ-Þ][\w’'-]+)*")
_TERM = re.compile(r"\b(?:called|named|termed|known as) (?P<span>(?:[a-z][a-z-]+ )?[a-z][a-z-]+)(?=[,.;:)])")
_SENTENCE = re.compile(r"[^.!?]+(?:[.!?](?!\s|$)[^.!?]+)*[.!?]*")

_MIN_SENTENCE_WORDS = 6
#: A cell with fewer words is a name or a label, not a text that can be answered.
_MIN_SOURCE_WORDS = 5

#: Start and end of a span, and the openings of the question.
_Spans = Iterator[tuple[int, int, tuple[str, ...]]]


@dataclass(frozen=True)
class Cue:
    """The teacher writes a question with one of the ``openings``; its answer is a span of ``sentence``."""

    sentence: str
    answer: str
    openings: tuple[str, ...]


@dataclass(frozen=True)
class SourceText:
    """The teacher answers the text in the cell ``column``, in tasks without a passage."""

    column: str
    text: str


Guidance = Cue | SourceText
#: A dataset and its config, whose rows have the same columns.
Config = tuple[str, str]


def can_be_guided(task: Task) -> bool:
    """Whether a teacher can be guided: it writes one field, and for a passage the answer is a span."""
    return len(task.written_fields) == 1 and (task.passage is None or task.answer.type == "span")


def find_cue(task: Task, row: Mapping[str, Any], columns: Mapping[Config, str]) -> Guidance | None:
    """The cue for this row; None if the row offers none.

    ``columns`` names each config's column of source texts (``source_text_columns``).
    """
    if task.passage:
        return choose_cue(row["passage"], seed=str(row["row_id"]))
    column = columns.get(_config(row), "")
    text = str(json.loads(row["row"]).get(column, "")).strip()
    return SourceText(column, text) if len(text.split()) >= _MIN_SOURCE_WORDS else None


def source_text_columns(rows: Iterable[Mapping[str, Any]]) -> dict[Config, str]:
    """For each config of a dataset the column with texts like the queries of the task.

    Of the columns that matched the queries (``query_column``), this is the one with the longest texts: short cells are
    names and labels, and a problem is longer than its answer.
    """
    rows = list(rows)
    columns: dict[Config, set[str]] = defaultdict(set)
    for row in rows:
        if isinstance(row["query_column"], str):
            columns[_config(row)].add(row["query_column"])
    words: Counter[tuple[Config, str]] = Counter()
    for row in rows:
        cells = json.loads(row["row"])
        for column in columns.get(_config(row), ()):
            words[_config(row), column] += len(str(cells.get(column, "")).split())
    return {config: max(sorted(names), key=lambda name: words[config, name]) for config, names in columns.items()}


def _config(row: Mapping[str, Any]) -> Config:
    return row["dataset"], row["config"]


def sentences(text: str) -> list[str]:
    """The sentences of a text, one line each. A period inside a number or a name does not end a sentence."""
    return [" ".join(match.group().split()) for match in _SENTENCE.finditer(text) if match.group().strip()]


def find_cues(passage: str) -> list[Cue]:
    """Every cue in the passage. Spans do not overlap, and each occurs once in its sentence."""
    return [
        cue
        for sentence in sentences(passage)
        if len(sentence.split()) >= _MIN_SENTENCE_WORDS
        for cue in _cues_in(sentence)
        if sentence.count(cue.answer) == 1
    ]


def choose_cue(passage: str, seed: str) -> Cue | None:
    """One cue of the passage, chosen at random by ``seed``; None if there is none."""
    cues = find_cues(passage)
    return random.Random(seed).choice(cues) if cues else None  # noqa: S311


def _cues_in(sentence: str) -> Iterator[Cue]:
    taken: list[tuple[int, int]] = []
    for finder in (_dates, _quantities, _names, _terms):
        for start, end, openings in finder(sentence):
            if all(end <= left or right <= start for left, right in taken):
                taken.append((start, end))
                yield Cue(sentence, sentence[start:end], openings)


def _dates(sentence: str) -> _Spans:
    for match in _DATE.finditer(sentence):
        opening = "In what year" if match.group().isdigit() else "When"
        yield *match.span(), tuple(f"{opening} {auxiliary}" for auxiliary in _AUXILIARIES)


def _quantities(sentence: str) -> _Spans:
    for match in _QUANTITY.finditer(sentence):
        unit = match["unit"].strip()
        if unit in ("per cent", "%"):
            yield *match.span(), ("What percentage", "How much")
        elif not _FUNCTION_WORDS.union(_NUMERALS.split("|")).intersection(unit.split()) and not _YEAR.fullmatch(
            match["number"]
        ):
            yield *match.span(), (f"How many {unit}",)


def _names(sentence: str) -> _Spans:
    """Places (after "in" and similar words) and persons (after "by", or before a verb of action)."""
    for match in _NAME.finditer(sentence):
        start, end = match.span()
        # The first word of every sentence is capitalized.
        first, _, rest = match.group().partition(" ")
        if start == 0 and first.casefold() in _FUNCTION_WORDS:
            start = end - len(rest.removeprefix("the "))
        if start == 0 and not rest:
            continue
        if match.group().endswith(("'s", "’s")):
            continue
        word = sentence[:start].casefold().split()[-1:]
        after = sentence[end:].lstrip()
        is_adjective = _ADJECTIVE.search(sentence[start:end]) and re.match(r"[a-z]", after)
        if word and word[0] in _PLACE_WORDS and not is_adjective and not _is_noun(after):
            yield start, end, tuple(f"Where {auxiliary}" for auxiliary in _AUXILIARIES)
        elif (word == ["by"] and not _is_noun(after)) or (
            " " in sentence[start:end] and word != ["the"] and _VERB.match(after)
        ):
            yield start, end, ("Who",)


def _terms(sentence: str) -> _Spans:
    for match in _TERM.finditer(sentence):
        if not _FUNCTION_WORDS.intersection(match["span"].split()):
            yield *match.span("span"), ("What is the name of", "What are")


def _is_noun(text: str) -> bool:
    """Whether the text starts with a word that may belong to the name before it ("Felling colliery")."""
    word = re.match(r"[a-z]+", text)
    return word is not None and word.group() not in _FUNCTION_WORDS and not _VERB.match(text)
