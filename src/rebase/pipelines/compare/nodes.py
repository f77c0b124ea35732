"""Compare: every baseline and ReBase, trained and evaluated alike, in one table (docs/method.md section 9)."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rebase.parameters import CompareParameters, EvaluateParameters, TrainParameters
from rebase.records import Adapter, Task, Untrained
from rebase.student.answering import STUDENT, answer_items
from rebase.student.handle import Student
from rebase.student.training import train_adapter
from rebase.tasks.evaluation_items import select_items
from rebase.tasks.scoring import aggregate, score_answers

FEW_SHOT = "student_few_shot"
#: The training set that is ``rebase``'s where the task has no chain of thought: it is left out there.
WITH_COT = "rebase_cot"


def learn_curve(
    training_set: pd.DataFrame, student: Student, train: TrainParameters, compare: CompareParameters
) -> pd.DataFrame:
    """Train on each size of the training set with each seed; what ``train_student`` trains is not among them.

    A seed draws the examples as well as their order and the adapter's start: of one seed a smaller set is part of a
    larger one. Finished runs are not trained again.

    Returns a line a run: ``examples`` that it was given, ``seed``, ``folder`` and ``base_model`` of the adapter.
    """
    points = []
    for seed in dict.fromkeys((train.seed, *compare.seeds)):
        order = np.random.default_rng(seed).permutation(len(training_set))
        for size in dict.fromkeys((*(size for size in compare.sizes if size < len(order)), len(order))):
            if (size, seed) == (len(order), train.seed):
                continue
            # All of them stay in the order in which they stand: there the seed alone makes the difference.
            chosen = training_set.iloc[order[:size]] if size < len(order) else training_set
            adapter, _, _ = train_adapter(student, chosen, train.model_copy(update={"seed": seed}))
            points.append((size, seed, str(adapter.folder), adapter.base_model))
    return pd.DataFrame(points, columns=["examples", "seed", "folder", "base_model"])


def predict_systems(
    task: Task,
    evaluation_items: pd.DataFrame,
    student: Student,
    parameters: EvaluateParameters,
    **adapters: Adapter | Untrained,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Let the student answer the items, with none of the task's examples and with them; and so each of its adapters.

    Returns ``generations`` as ``evaluate`` has them, and the stage's summary, which says of each system that could not
    be trained why (``left_out``).
    """
    items, rejected = select_items(task, evaluation_items, parameters.limit)
    trained = {
        name: adapter
        for name, adapter in adapters.items()
        if isinstance(adapter, Adapter) and (task.cot or name != WITH_COT)
    }
    systems = {STUDENT: None, FEW_SHOT: None, **trained}
    generations = answer_items(task, items, student, systems, parameters, few_shot={FEW_SHOT})
    left_out = {name: adapter.reason for name, adapter in adapters.items() if isinstance(adapter, Untrained)}
    summary = {
        "stage": "compare",
        "in": len(evaluation_items),
        "kept": len(items),
        "rejected": rejected,
        "left_out": left_out,
    }
    return generations, summary


def score_systems(
    task: Task, parameters: EvaluateParameters, compare_summary: dict[str, Any], *generations: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Predictions and scores of all systems, with the paired difference of every two of them, the later less.

    The scores say what is ``left_out``, and why.
    """
    predictions = score_answers(task, pd.concat(generations, ignore_index=True))
    systems = list(predictions["system"].unique())
    pairs = [(later, earlier) for earlier, later in combinations(systems, 2)]
    scores = aggregate(task, predictions, pairs, parameters)
    return predictions, {**scores, "left_out": compare_summary["left_out"]}


def score_curves(
    task: Task,
    evaluation_items: pd.DataFrame,
    student: Student,
    scores: dict[str, Any],
    train: TrainParameters,
    parameters: EvaluateParameters,
    **trained: Any,
) -> pd.DataFrame:
    """The learning curves: ``training_set``, ``examples``, ``seed``, ``metric``, ``value``, ``low``, ``high``.

    ``trained`` has for each training set ``NAME`` the ``NAME_curve`` of ``learn_curve``, and the ``NAME_summary`` of
    the run on all of it. ``examples`` is what a run was given, long ones included; none is the student as it came.
    """
    items, _ = select_items(task, evaluation_items, parameters.limit)
    names = [name.removesuffix("_curve") for name in trained if name.endswith("_curve")]
    names = [name for name in names if name in scores["systems"]]
    points = {
        f"{name}-{point.Index}": (name, point) for name in names for point in trained[f"{name}_curve"].itertuples()
    }
    lines = []
    for name in names:
        sizes = {STUDENT: 0, name: trained[f"{name}_summary"]["in"]}
        for system, size in sizes.items():
            lines += _curve_lines(name, size, train.seed, scores["systems"][system])
    if points:
        adapters = {key: Adapter(Path(point.folder), point.base_model) for key, (_, point) in points.items()}
        predictions = score_answers(task, answer_items(task, items, student, adapters, parameters))
        for key, values in aggregate(task, predictions, [], parameters)["systems"].items():
            name, point = points[key]
            lines += _curve_lines(name, point.examples, point.seed, values)
    order = ["training_set", "metric", "seed", "examples"]
    return pd.DataFrame(lines).sort_values(order, kind="stable", ignore_index=True)


def tabulate(scores: dict[str, Any], task: Task, curves: pd.DataFrame, **summaries: dict[str, Any]) -> pd.DataFrame:
    """One line a system and metric, with what the system took to make and how its score varies with the seed.

    Columns: ``system``, ``metric``, ``value``, ``low``, ``high`` (percent), ``items``; ``examples`` trained on or
    shown, ``requests`` and ``dollars`` for the teacher (stored responses count as on the day they were bought),
    ``minutes`` of training; ``seeds`` and ``seed_mean``, ``seed_deviation`` (of a sample) over all runs on the whole
    training set. ``summaries`` are those of the stages that asked the teacher, and of training as ``train_SYSTEM``.
    """
    spent = {
        "synthesized": ("synthesize",),
        "distilled": ("transform", "distil"),
        "rebase": ("transform",),
        "rebase_cot": ("transform", "cot"),
        "teacher": ("teacher",),
    }
    lines = []
    for system, metrics in scores["systems"].items():
        trained = summaries.get(f"train_{system}")
        usage = [summaries[stage]["usage"] for stage in spent.get(system, ()) if stage in summaries]
        requests, dollars = ([used[name] for used in usage] for name in ("used", "used_dollars"))
        made = {
            "items": scores["n"],
            "examples": trained["kept"] if trained else 0 if system == STUDENT else len(task.examples),
            "requests": None if None in requests else sum(requests),
            "dollars": None if None in dollars else sum(dollars),
            "minutes": round(trained["seconds"] / 60, 2) if trained else 0.0,
        }
        for metric, cell in metrics.items():
            runs = _whole_runs(curves, system, metric)
            seeds = {
                "seeds": len(runs),
                "seed_mean": np.mean(runs) if runs else None,
                "seed_deviation": np.std(runs, ddof=1) if len(runs) > 1 else None,
            }
            lines.append({"system": system, "metric": metric, **cell, **made, **seeds})
    return pd.DataFrame(lines)


def _curve_lines(name: str, examples: int, seed: int, values: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"training_set": name, "examples": examples, "seed": seed, "metric": metric, **cell}
        for metric, cell in values.items()
    ]


def _whole_runs(curves: pd.DataFrame, system: str, metric: str) -> Sequence[float]:
    """The values of the runs on all of a training set, one a seed."""
    own = curves[(curves["training_set"] == system) & (curves["metric"] == metric)]
    return own.loc[own["examples"] == own["examples"].max(), "value"].to_list()
