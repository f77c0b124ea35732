"""Compare: train and evaluate every baseline and ReBase in the same way, in one table (docs/method.md section 9)."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rebase.errors import RebaseError
from rebase.generation.mixing import distinct_queries, mix
from rebase.parameters import CompareParameters, EvaluateParameters, TrainParameters
from rebase.records import (
    COMPARISON_COLUMNS,
    CURVE_COLUMNS,
    CURVES_COLUMNS,
    Adapter,
    Task,
    Untrained,
    summarize_stage,
)
from rebase.student.answering import FEW_SHOT, STUDENT, answer_items
from rebase.student.handle import Student
from rebase.student.tokenization import TRUNCATED, VALIDATION
from rebase.student.training import train_adapter
from rebase.tasks.evaluation_items import select_items
from rebase.tasks.scoring import score_predictions
from rebase.tasks.verdict import warnings
from rebase.weights import resolve_dtype

logger = logging.getLogger(__name__)

#: This training set equals ``rebase``'s if the task has no chain of thought, and is left out then.
WITH_COT = "rebase_cot"

#: The stages whose requests made the examples of a system.
_REQUESTING_STAGES = {
    "synthesized": ("synthesize",),
    "distilled": ("transform", "distil"),
    "rebase": ("transform",),
    "rebase_cot": ("transform", "cot"),
    "mapped": ("map",),
    "mapped_rebase": ("map", "transform"),
    "mapped_rebase_price": ("map", "transform"),
    "teacher": ("teacher",),
}


def add_mapped(
    mapped_examples: pd.DataFrame,
    examples: pd.DataFrame,
    map_summary: dict[str, Any],
    transform_summary: dict[str, Any],
    train: TrainParameters,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Draw the training sets with mapped examples: two at the size, one at the price of ``examples``.

    At equal size, where there are enough: mapped examples alone, and half mapped, half rewritten. At equal price: all
    mapped examples, and the first of the rewritten ones that the requests that map saved have bought.
    """
    if mapped_examples.empty:
        return (mapped_examples,) * 3

    def draw(tables: Mapping[str, pd.DataFrame], weights: Mapping[str, float], size: int | None) -> pd.DataFrame:
        return mix(tables, weights, size, train.seed)[0]

    requests, of_map = (summary["usage"]["used"] for summary in (transform_summary, map_summary))
    bought = examples.head(max(0, requests - of_map) * len(examples) // max(1, requests))
    size = min(len(mapped_examples), len(examples))
    tables = distinct_queries({"mapped_examples": mapped_examples, "examples": examples})
    mixed = min(len(examples), 2 * min(map(len, tables.values())))
    affordable = distinct_queries({"mapped_examples": mapped_examples, "examples": bought})
    counts = {name: len(table) for name, table in affordable.items() if len(table)}
    return (
        draw(tables, {"mapped_examples": 1}, size),
        draw(tables, dict.fromkeys(tables, 1), mixed),
        draw(affordable, counts, None),
    )


def learn_curve(
    training_set: pd.DataFrame, student: Student, train: TrainParameters, compare: CompareParameters
) -> pd.DataFrame:
    """Train on each size of the training set with each seed, except the run that ``train_student`` does.

    A seed draws the examples, their order and the adapter's initial weights: with one seed a smaller set is part of a
    larger one. Finished runs are not trained again; a run that fails, such as one with too few examples, is left out
    with a warning.

    Returns one row per run (``CURVE_COLUMNS``).
    """
    runs = []
    for seed in dict.fromkeys((train.seed, *compare.seeds)):
        order = np.random.default_rng(seed).permutation(len(training_set))
        for size in dict.fromkeys((*(size for size in compare.sizes if size < len(order)), len(order))):
            if (size, seed) == (len(order), train.seed):
                continue
            # The full set keeps its order, so that only the seed differs.
            chosen = training_set.iloc[order[:size]] if size < len(order) else training_set
            try:
                adapter, _, _ = train_adapter(student, chosen, train.model_copy(update={"seed": seed}))
            except RebaseError as error:
                logger.warning("compare: the learning curve has no run on %d examples (seed %d): %s", size, seed, error)
                continue
            runs.append((size, seed, str(adapter.folder), adapter.base_model))
    return pd.DataFrame(runs, columns=CURVE_COLUMNS)


def predict_systems(
    task: Task,
    evaluation_items: pd.DataFrame,
    student: Student,
    parameters: EvaluateParameters,
    **adapters: Adapter | Untrained,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Let the student answer the items without and with the task's examples, and with each adapter.

    Returns ``generations`` as in the evaluate pipeline, and the stage's summary with the reason for each system that
    could not be trained (``left_out``).
    """
    started = time.monotonic()
    items, rejected = select_items(task, evaluation_items, parameters.limit)
    trained = {
        name: adapter
        for name, adapter in adapters.items()
        if isinstance(adapter, Adapter) and (task.cot or name != WITH_COT)
    }
    systems = {STUDENT: None, FEW_SHOT: None, **trained}
    generations = answer_items(task, items, student, systems, parameters, few_shot={FEW_SHOT})
    summary = summarize_stage(
        "compare",
        kept=len(items),
        rejected=rejected,
        seconds=time.monotonic() - started,
        dtype=resolve_dtype(student.dtype),
        left_out={name: adapter.reason for name, adapter in adapters.items() if isinstance(adapter, Untrained)},
    )
    return generations, summary


def score_systems(
    task: Task, parameters: EvaluateParameters, compare_summary: dict[str, Any], *generations: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Predictions and scores of all systems (``score_predictions``).

    The scores also have the reasons of ``left_out``, and ``warnings`` about the systems that were trained.
    """
    predictions, scores = score_predictions(task, pd.concat(generations, ignore_index=True), parameters)
    trained = [name for name in scores["systems"] if name not in {STUDENT, FEW_SHOT, "teacher"}]
    doubts = warnings(task, predictions, scores, *trained)
    return predictions, {**scores, "left_out": compare_summary["left_out"], "warnings": doubts}


def score_curves(
    task: Task,
    evaluation_items: pd.DataFrame,
    student: Student,
    scores: dict[str, Any],
    train: TrainParameters,
    parameters: EvaluateParameters,
    **trained: Any,
) -> pd.DataFrame:
    """Score every run of the learning curves, and the student before training.

    For each training set ``NAME``, ``trained`` has the ``NAME_curve`` of ``learn_curve`` and the
    ``NAME_train_summary`` of the run on the full set. ``examples`` counts what a run was given, also those that were
    too long or for validation; 0 is the student before training. Returns ``CURVES_COLUMNS``. Raises RebaseError if no
    training set could be trained.
    """
    names = [name for name in scores["systems"] if f"{name}_curve" in trained]
    if not names:
        raise RebaseError(f"compare: none of the training sets could be trained: {scores['left_out']}")
    systems, runs, adapters = scores["systems"], [], {}
    for name in names:
        summary = trained[f"{name}_train_summary"]
        # The summary's `in` also has the examples that `train.exclude` names, which no run was given.
        given = summary["kept"] + sum(summary["rejected"].get(reason, 0) for reason in (TRUNCATED, VALIDATION))
        runs += [(name, 0, train.seed, STUDENT), (name, given, train.seed, name)]
        for run in trained[f"{name}_curve"].itertuples():
            system = f"{name}-{run.Index}"
            runs.append((name, run.examples, run.seed, system))
            adapters[system] = Adapter(Path(run.folder), run.base_model)
    if adapters:
        items, _ = select_items(task, evaluation_items, parameters.limit)
        answers = answer_items(task, items, student, adapters, parameters)
        systems = systems | score_predictions(task, answers, parameters, pairs=[])[1]["systems"]
    rows = [
        {"training_set": name, "examples": examples, "seed": seed, "metric": metric, **cell}
        for name, examples, seed, system in runs
        for metric, cell in systems[system].items()
    ]
    order = ["training_set", "metric", "seed", "examples"]
    return pd.DataFrame(rows, columns=CURVES_COLUMNS).sort_values(order, kind="stable", ignore_index=True)


def tabulate(
    scores: dict[str, Any],
    task: Task,
    curves: pd.DataFrame,
    examples: pd.DataFrame,
    mapped_rebase_examples: pd.DataFrame,
    mapped_rebase_price_examples: pd.DataFrame,
    **summaries: dict[str, Any],
) -> pd.DataFrame:
    """One row per system and metric, with the cost of the system and the variance of its score over seeds.

    Of ``COMPARISON_COLUMNS``, ``examples`` counts those trained on or shown, ``dollars`` include cached responses with
    their original price, and ``seed_deviation`` is that of a sample. A mixture has its share of the requests for the
    rewritten ``examples``. ``summaries`` are ``STAGE_summary`` of the stages that use the teacher, and
    ``SYSTEM_train_summary``.
    """
    mixtures = {"mapped_rebase": mapped_rebase_examples, "mapped_rebase_price": mapped_rebase_price_examples}

    def sum_usage(system: str, column: str) -> float | None:
        total = 0.0
        for stage in _REQUESTING_STAGES.get(system, ()):
            used = summaries[f"{stage}_summary"]["usage"][column]
            if used is None:
                return None
            is_part = stage == "transform" and system in mixtures
            total += used * ((mixtures[system]["origin"] == "examples").sum() / len(examples) if is_part else 1)
        return total

    rows = []
    for system, metrics in scores["systems"].items():
        trained = summaries.get(f"{system}_train_summary")
        requests = sum_usage(system, "used")
        cost = {
            "items": scores["n"],
            "examples": trained["kept"] if trained else 0 if system == STUDENT else len(task.examples),
            "requests": None if requests is None else round(requests),
            "dollars": sum_usage(system, "used_dollars"),
            "minutes": round(trained["seconds"] / 60, 2) if trained else 0.0,
        }
        rows += [{"system": system, "metric": metric, **cell, **cost} for metric, cell in metrics.items()]
    full = curves[curves["examples"] == curves.groupby("training_set")["examples"].transform("max")]
    seeds = full.groupby(["training_set", "metric"])["value"].agg(seeds="size", seed_mean="mean", seed_deviation="std")
    table = pd.DataFrame(rows).join(seeds, on=["system", "metric"])
    return table.assign(seeds=table["seeds"].fillna(0).astype(int))[COMPARISON_COLUMNS]
