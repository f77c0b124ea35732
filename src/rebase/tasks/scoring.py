"""Scores of answers, scores of systems with intervals, and paired differences."""

import json
from collections.abc import Iterable
from itertools import combinations
from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.parameters import EvaluateParameters
from rebase.records import Metric, Task
from rebase.tasks.extraction import extract
from rebase.tasks.metrics import bootstrap_chrf, bootstrap_interval, permutation_p, score


def score_answers(task: Task, generations: pd.DataFrame) -> pd.DataFrame:
    """Add ``extracted`` and one column per metric of the task, 0 to 1, to ``generations``."""
    predictions = generations.assign(extracted=[extract(output, task.answer) for output in generations["raw_output"]])
    references = [json.loads(text) for text in predictions["references"]]
    for metric in task.metrics:
        predictions[metric] = [score(metric, *pair) for pair in zip(predictions["extracted"], references, strict=True)]
    return predictions


def score_predictions(
    task: Task,
    generations: pd.DataFrame,
    parameters: EvaluateParameters,
    pairs: Iterable[tuple[str, str]] | None = None,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Extract and score every answer.

    Returns ``predictions`` (``score_answers``), and scores in percent with bootstrap intervals: of each system, and of
    the difference of each pair (None: of any two systems, the later minus the earlier). Differences are paired and
    also have ``p`` (``permutation_p`` on the item scores).

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

    def interval(metric: Metric, system: str, baseline: str | None = None) -> dict[str, float]:
        frame = by_system[system]
        other = by_system[baseline].loc[frame.index] if baseline else None
        gains = frame[metric] - (0 if other is None else other[metric])
        if metric == "chrf":
            references = [json.loads(text) for text in frame["references"]]
            baseline_texts = None if other is None else other["extracted"].to_list()
            scores = bootstrap_chrf(frame["extracted"].to_list(), references, *draws, baseline=baseline_texts)
        else:
            scores = bootstrap_interval(gains.to_list(), *draws)
        return scores if other is None else {**scores, "p": permutation_p(gains.to_numpy(), parameters.seed)}

    return predictions, {
        "task": task.name,
        "n": len(by_system[first]),
        "unit": "percent",
        "confidence": parameters.confidence,
        "systems": {system: {metric: interval(metric, system) for metric in task.metrics} for system in by_system},
        "differences": {
            f"{system} - {baseline}": {metric: interval(metric, system, baseline) for metric in task.metrics}
            for system, baseline in pairs
        },
    }
