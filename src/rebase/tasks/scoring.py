"""Scores of answers, scores of systems with intervals, and paired differences."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.parameters import EvaluateParameters
from rebase.records import Task
from rebase.tasks.extraction import extract, named_labels, remove_thoughts
from rebase.tasks.metrics import (
    bootstrap_chrf,
    bootstrap_interval,
    contains_answer,
    permutation_p,
    same_label,
    same_number,
    score,
)
from rebase.tasks.numbers import all_numbers
from rebase.tasks.verdict import GRADED, LENIENT, verdict, warnings
from rebase.text import tokens


def answer_found(task: Task, raw_output: str, references: Sequence[str]) -> float:
    """The lenient score of an answer, 0 to 1: whether its content is right, in whatever form.

    It is never below the task's first metric, the strict score, and without regard to thoughts it is 1 where

    - ``label``: the output names a reference, in any place, and does not name all labels,
    - ``number``: a number of the output is a reference,
    - ``span``, ``text``, ``code``: the output contains all words of a reference, in a row; if the first metric has
      degrees (``GRADED``), it is the largest share of the words of a reference, in any order.
    """
    text, answer, metric = remove_thoughts(raw_output), task.answer, task.metrics[0]
    strict = score(metric, extract(raw_output, answer), references)
    if answer.type == "label":
        named = named_labels(text, answer.labels)
        return max(strict, float(len(named) < len(answer.labels) and _any_same(same_label, named, references)))
    if answer.type == "number":
        return max(strict, float(_any_same(same_number, all_numbers(text), references)))
    if metric in GRADED:
        words = Counter(tokens(text))
        wanted = filter(None, (Counter(tokens(reference)) for reference in references))
        return max([strict, *((words & counts).total() / counts.total() for counts in wanted)])
    return max(strict, float(any(contains_answer(text, reference) for reference in references)))


def _any_same(same: Callable[[str, str], float], values: Iterable[str], references: Sequence[str]) -> bool:
    return any(same(value, reference) for value in values for reference in references)


def score_answers(task: Task, generations: pd.DataFrame) -> pd.DataFrame:
    """Add ``extracted``, one column per metric of the task and the lenient score, 0 to 1, to ``generations``."""
    predictions = generations.assign(extracted=[extract(output, task.answer) for output in generations["raw_output"]])
    references = [json.loads(text) for text in predictions["references"]]
    for metric in task.metrics:
        predictions[metric] = [score(metric, *pair) for pair in zip(predictions["extracted"], references, strict=True)]
    pairs = zip(predictions["raw_output"], references, strict=True)
    return predictions.assign(**{LENIENT: [answer_found(task, *pair) for pair in pairs]})


def score_predictions(
    task: Task,
    generations: pd.DataFrame,
    parameters: EvaluateParameters,
    pairs: Iterable[tuple[str, str]] | None = None,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Extract and score every answer.

    Returns ``predictions`` (``score_answers``), and scores in percent with bootstrap intervals: of each system, and of
    the difference of each pair (None: of any two systems, the later minus the earlier). Differences are paired and
    also have ``p`` (``permutation_p``). The metrics are the task's and the lenient score. With answers of the student
    and the expert, the scores also have the ``verdict`` and ``warnings``.

    Raises RebaseError if there are no answers, or if the systems answered different items: their scores do not compare.
    """
    if generations.empty:
        raise RebaseError(
            "evaluate: there are no answers to score: the teacher's budget did not last for all items. Raise it, or "
            "lower evaluate.limit."
        )
    predictions = score_answers(task, generations)
    by_system = {str(system): frame.set_index("item_id") for system, frame in predictions.groupby("system", sort=False)}
    first = next(iter(by_system))
    for system, frame in by_system.items():
        if set(frame.index) != set(by_system[first].index):
            raise RebaseError(
                f"evaluate: {system!r} answered {len(frame)} items, {first!r} {len(by_system[first])}, or not the same "
                "ones. `evaluate.limit` or the evaluation set has changed: run the nodes again that generate answers."
            )
    if pairs is None:
        pairs = [(later, earlier) for earlier, later in combinations(by_system, 2)]
    draws = (parameters.bootstrap_samples, parameters.confidence, parameters.seed)

    def interval(metric: str, system: str, baseline: str | None = None) -> dict[str, float]:
        frame = by_system[system]
        other = by_system[baseline].loc[frame.index] if baseline else None
        if metric == "chrf":
            references = [json.loads(text) for text in frame["references"]]
            baseline_texts = None if other is None else other["extracted"].to_list()
            return bootstrap_chrf(frame["extracted"].to_list(), references, *draws, baseline=baseline_texts)
        if other is None:
            return bootstrap_interval(frame[metric].to_list(), *draws)
        gains = (frame[metric] - other[metric]).to_numpy()
        return {**bootstrap_interval(gains, *draws), "p": permutation_p(gains, parameters.seed)}

    metrics = (*task.metrics, LENIENT)
    scores: dict[str, Any] = {
        "task": task.name,
        "n": len(by_system[first]),
        "unit": "percent",
        "confidence": parameters.confidence,
        "systems": {system: {metric: interval(metric, system) for metric in metrics} for system in by_system},
        "differences": {
            f"{system} - {baseline}": {metric: interval(metric, system, baseline) for metric in metrics}
            for system, baseline in pairs
        },
    }
    if "expert - student" in scores["differences"]:
        return predictions, scores | {
            "verdict": verdict(task.metrics[0], predictions, scores),
            "warnings": warnings(task, predictions, scores, "expert"),
        }
    return predictions, scores
