"""From what systems wrote to scores: each answer's own, each system's with an interval, and paired differences."""

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
    """``generations`` with ``extracted`` and one column a metric of the task, 0 .. 1."""
    predictions = generations.assign(extracted=[extract(raw, task.answer) for raw in generations["raw_output"]])
    accepted = [json.loads(answers) for answers in predictions["references"]]
    for metric in task.metrics:
        predictions[metric] = [
            score(metric, extracted, answers)
            for extracted, answers in zip(predictions["extracted"], accepted, strict=True)
        ]
    return predictions


def aggregate(
    task: Task, predictions: pd.DataFrame, pairs: Iterable[tuple[str, str]], parameters: EvaluateParameters
) -> dict[str, Any]:
    """Scores as percentages with bootstrap intervals, for each system and for the paired difference of each pair.

    ``predictions`` are of ``score_answers``. A difference has ``p`` as well, by ``permutation_p`` on the items' own
    scores. Raises RebaseError where two systems answered other items: they do not compare.
    """
    by_system = {str(system): frame.set_index("item_id") for system, frame in predictions.groupby("system", sort=False)}
    first = next(iter(by_system))
    for system, frame in by_system.items():
        if set(frame.index) != set(by_system[first].index):
            raise RebaseError(
                f"evaluate: {system!r} answered {len(frame)} items, {first!r} {len(by_system[first])} or others. They "
                "were asked with another `evaluate.limit` or evaluation set: run from the nodes that ask them again."
            )
    draws = (parameters.bootstrap_samples, parameters.confidence, parameters.seed)

    def interval(metric: Metric, system: str, baseline: str | None = None) -> dict[str, float]:
        frame = by_system[system]
        other = None if baseline is None else by_system[baseline].loc[frame.index]
        if metric == "chrf":
            answers = [json.loads(accepted) for accepted in frame["references"]]
            theirs = None if other is None else other["extracted"].to_list()
            return bootstrap_chrf(frame["extracted"].to_list(), answers, *draws, baseline=theirs)
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
