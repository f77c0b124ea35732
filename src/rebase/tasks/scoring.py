"""Scores of answers, scores of systems with intervals, and paired differences."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
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
        predictions[metric] = [
            score(metric, extracted, item_references)
            for extracted, item_references in zip(predictions["extracted"], references, strict=True)
        ]
    return predictions


def aggregate(
    task: Task, predictions: pd.DataFrame, pairs: Iterable[tuple[str, str]], parameters: EvaluateParameters
) -> dict[str, Any]:
    """Return scores in percent with bootstrap intervals, for each system and for the difference of each pair.

    ``predictions`` come from ``score_answers``. Differences are paired and also have ``p`` (``permutation_p`` on the
    item scores). Raises RebaseError if the systems answered different items, since their scores do not compare.
    """
    by_system = {str(system): frame.set_index("item_id") for system, frame in predictions.groupby("system", sort=False)}
    first = next(iter(by_system))
    for system, frame in by_system.items():
        if set(frame.index) != set(by_system[first].index):
            raise RebaseError(
                f"evaluate: {system!r} answered {len(frame)} items, {first!r} {len(by_system[first])}, or not the same "
                "ones. `evaluate.limit` or the evaluation set has changed: run the nodes again that generate answers."
            )
    draws = (parameters.bootstrap_samples, parameters.confidence, parameters.seed)

    def interval(metric: Metric, system: str, baseline: str | None = None) -> dict[str, float]:
        frame = by_system[system]
        other = None if baseline is None else by_system[baseline].loc[frame.index]
        if metric == "chrf":
            references = [json.loads(text) for text in frame["references"]]
            baseline_texts = None if other is None else other["extracted"].to_list()
            return bootstrap_chrf(frame["extracted"].to_list(), references, *draws, baseline=baseline_texts)
        return bootstrap_interval((frame[metric] - (0 if other is None else other[metric])).to_list(), *draws)

    def difference(metric: Metric, system: str, baseline: str) -> dict[str, float]:
        frame = by_system[system]
        gains = frame[metric] - by_system[baseline][metric].loc[frame.index]
        return {**interval(metric, system, baseline), "p": permutation_p(np.asarray(gains), parameters.seed)}

    return {
        "task": task.name,
        "n": len(by_system[first]),
        "unit": "percent",
        "confidence": parameters.confidence,
        "systems": {system: {metric: interval(metric, system) for metric in task.metrics} for system in by_system},
        "differences": {
            f"{system} - {baseline}": {metric: difference(metric, system, baseline) for metric in task.metrics}
            for system, baseline in pairs
        },
    }
