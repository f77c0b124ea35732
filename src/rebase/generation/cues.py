"""Spans of a passage that a question can ask for: dates, quantities, places, persons and terms.

A weak teacher writes fair questions when it is guided: one sentence, the span in it that is to be the answer, and how
the question opens (answer-aware question generation, as in Du and Cardie 2018 and Alberti et al. 2019). Only spans
that the words around them make sure of are taken. The patterns are for English; where they find nothing there is
no cue.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

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
#: What a person did: tells a person's name at the head of a clause from other names.
_VERB = re.compile(r"(?:[a-z]+ed|was|had|who|took|made|wrote|built|found|began|gave|led|won|saw|came)\b")
#: "British", "Roman", "Japanese": before a noun these are no names.
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

_Found = Iterator[tuple[int, int, tuple[str, ...]]]


@dataclass(frozen=True)
class Cue:
    """What a teacher is guided to ask: for ``answer``, a span of ``sentence``, by a question with one of ``openings``."""

    sentence: str
    answer: str
    openings: tuple[str, ...]


def sentences(text: str) -> list[str]:
    """The sentences of a text, on one line each. A full stop inside a number or a name does not end one."""
    return [" ".join(match.group().split()) for match in _SENTENCE.finditer(text) if match.group().strip()]


def find_cues(passage: str) -> list[Cue]:
    """Every cue in the passage. Spans do not overlap, and each stands in its sentence once."""
    return [
        cue
        for sentence in sentences(passage)
        if len(sentence.split()) >= _MIN_SENTENCE_WORDS
        for cue in _cues_in(sentence)
        if sentence.count(cue.answer) == 1
    ]


def choose_cue(passage: str, seed: str) -> Cue | None:
    """One cue of the passage, by chance that ``seed`` fixes; None where there is none."""
    cues = find_cues(passage)
    return random.Random(seed).choice(cues) if cues else None  # noqa: S311 - no secret


def _cues_in(sentence: str) -> Iterator[Cue]:
    taken: list[tuple[int, int]] = []
    for finder in (_dates, _quantities, _names, _terms):
        for start, end, openings in finder(sentence):
            if all(end <= left or right <= start for left, right in taken):
                taken.append((start, end))
                yield Cue(sentence, sentence[start:end], openings)


def _dates(sentence: str) -> _Found:
    for match in _DATE.finditer(sentence):
        opening = "In what year" if match.group().isdigit() else "When"
        yield *match.span(), tuple(f"{opening} {auxiliary}" for auxiliary in _AUXILIARIES)


def _quantities(sentence: str) -> _Found:
    for match in _QUANTITY.finditer(sentence):
        unit = match["unit"].strip()
        if unit in ("per cent", "%"):
            yield *match.span(), ("What percentage", "How much")
        elif not _FUNCTION_WORDS.union(_NUMERALS.split("|")).intersection(unit.split()) and not _YEAR.fullmatch(
            match["number"]
        ):
            yield *match.span(), (f"How many {unit}",)


def _names(sentence: str) -> _Found:
    """Places (after "in" and its like) and persons (after "by", or before what a person does)."""
    for match in _NAME.finditer(sentence):
        start, end = match.span()
        # The first word of a sentence is capitalized whatever it is.
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


def _terms(sentence: str) -> _Found:
    for match in _TERM.finditer(sentence):
        if not _FUNCTION_WORDS.intersection(match["span"].split()):
            yield *match.span("span"), ("What is the name of", "What are")


def _is_noun(text: str) -> bool:
    """If the text goes on with a word that may belong to the name before it ("Felling colliery")."""
    found = re.match(r"[a-z]+", text)
    return found is not None and found.group() not in _FUNCTION_WORDS and not _VERB.match(text)
