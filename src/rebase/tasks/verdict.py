"""What the scores of a run say, in sentences: content and format apart, and what a good score can hide."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from rebase.records import Metric, Task

#: The name of the lenient score, which ``scoring.answer_found`` defines.
LENIENT = "answer_found"
#: Metrics with degrees between right and wrong.
GRADED: frozenset[Metric] = frozenset({"chrf", "f1", "rouge_l"})
#: Fewer items decide nothing: on 20, the 95 % interval of a score of 50 reaches from 30 to 70.
MIN_ITEMS = 20
#: A difference is clear below this p-value, and a system gives nearly one label above this share of its answers.
_CLEAR_P, _NEARLY_ALL = 0.05, 0.9
_EXPERT, _STUDENT, _FEW_SHOT = "expert", "student", "student_few_shot"

Scores = Mapping[str, Any]


def verdict(metric: Metric, predictions: pd.DataFrame, scores: Scores) -> str:
    """Compare the expert with the student, without and with examples in its prompt: first in content, then in format.

    ``predictions`` and ``scores`` are those of ``score_predictions``, ``metric`` is the strict one. The number of
    answers that the lenient score counts is the content; how many of them the strict score counts as well is the
    format.
    """
    if scores["n"] < MIN_ITEMS:
        return f"{scores['n']} evaluation items are too few for a verdict: {MIN_ITEMS} or more are needed."
    if metric in GRADED:
        return " ".join(_graded_sentences(metric, scores))
    return " ".join(_counted_sentences(metric, predictions, scores))


def warnings(task: Task, predictions: pd.DataFrame, scores: Scores, *systems: str) -> list[str]:
    """What the score of a trained system can hide, for each of the ``systems``; nothing on few items (``MIN_ITEMS``).

    ``predictions`` and ``scores`` are those of ``score_predictions``.
    """
    if scores["n"] < MIN_ITEMS:
        return []
    by_system = dict(list(predictions.groupby("system")))
    return [line for system in systems for line in _warnings(task, system, by_system[system], scores)]


def is_clear(gain: Mapping[str, float]) -> bool:
    """Whether a difference of two systems is clear, by its p-value.

    The one criterion of all sentences, tables and colors: an interval and a p-value can disagree.
    """
    return gain["p"] < _CLEAR_P


def format_p(gain: Mapping[str, float]) -> str:
    """The p-value of a difference as text."""
    return "p < 0.001" if gain["p"] < 0.001 else f"p = {gain['p']:.2g}"


def _counted_sentences(metric: Metric, predictions: pd.DataFrame, scores: Scores) -> Iterator[str]:
    n = scores["n"]
    counts = predictions.groupby("system")[[LENIENT, metric]].sum().astype(int).T
    (expert, expert_in_format), (student, student_in_format) = counts[_EXPERT], counts[_STUDENT]
    yield (
        f"The expert answers {_more(expert - student, f' items of {n}')} the student ({expert} and {student}), "
        f"{expert_in_format} and {student_in_format} of them in the asked format; the difference in content is "
        f"{_clarity(_gain(scores, _STUDENT, LENIENT))}."
    )
    if _has_few_shot(scores):
        few_shot, few_shot_in_format = counts[_FEW_SHOT]
        yield (
            f"It answers {_more(expert - few_shot)} the student with examples in its prompt ({few_shot}, "
            f"{few_shot_in_format} of them in the asked format); this difference is "
            f"{_clarity(_gain(scores, _FEW_SHOT, LENIENT))}."
        )


def _graded_sentences(metric: Metric, scores: Scores) -> Iterator[str]:
    def amount(system: str) -> str:
        cells = scores["systems"][system]
        return f"{cells[LENIENT]['value']:.1f} % ({metric} {cells[metric]['value']:.1f})"

    yield (
        f"The expert's answers have {amount(_EXPERT)} of the words of the references, the student's "
        f"{amount(_STUDENT)}; the difference in content is {_clarity(_gain(scores, _STUDENT, LENIENT))}."
    )
    if _has_few_shot(scores):
        yield (
            f"With examples in its prompt the student's have {amount(_FEW_SHOT)}; the difference to the expert's is "
            f"{_clarity(_gain(scores, _FEW_SHOT, LENIENT))}."
        )


def _more(gain: int, items: str = "") -> str:
    return f"{abs(gain)} {'more' if gain > 0 else 'fewer'}{items} than" if gain else f"as many{items} as"


def _has_few_shot(scores: Scores, system: str = _EXPERT) -> bool:
    return f"{system} - {_FEW_SHOT}" in scores["differences"]


def _gain(scores: Scores, baseline: str, metric: str, system: str = _EXPERT) -> Mapping[str, float]:
    gain: Mapping[str, float] = scores["differences"][f"{system} - {baseline}"][metric]
    return gain


def _clarity(gain: Mapping[str, float]) -> str:
    return f"{'clear' if is_clear(gain) else 'not clear'} ({format_p(gain)})"


def _warnings(task: Task, system: str, answers: pd.DataFrame, scores: Scores) -> Iterator[str]:
    metric, n = task.metrics[0], scores["n"]
    cell = scores["systems"][system][metric]
    name = "The expert" if system == _EXPERT else system
    if task.answer.labels:
        frequent, count = Counter(json.loads(text)[0] for text in answers["references"]).most_common(1)[0]
        if cell["low"] <= 100 * count / n:
            yield (
                f"{name} is not clearly above the most frequent label: {cell['value']:.1f} "
                f"[{cell['low']:.1f}, {cell['high']:.1f}]; always answering {frequent!r} would score "
                f"{100 * count / n:.1f}."
            )
        given, times = Counter(answers["extracted"]).most_common(1)[0]
        if times >= _NEARLY_ALL * n > count:
            yield (
                f"{name} gives nearly one label: {given!r} for {times} of {n} items."
                if given
                else f"{name} gives no label for {times} of {n} items: see its outputs, and the task's max_new_tokens."
            )
    if _has_few_shot(scores, system) and (gain := _gain(scores, _FEW_SHOT, metric, system))["value"] < 0:
        few_shot = scores["systems"][_FEW_SHOT][metric]["value"]
        yield (
            f"{name} is below the student with examples in its prompt: {cell['value']:.1f} and {few_shot:.1f} in "
            f"{metric}; the difference is {_clarity(gain)}."
        )
