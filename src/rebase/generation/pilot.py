"""What a pilot tells of a full run: the acceptance along the ranking, the rows that it needs, and their cost."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from rebase.generation.cost_estimate import read_estimate, summarize_estimate
from rebase.parameters import TransformParameters
from rebase.teacher.cached import CachedTeacher

PARTS = ("top", "middle", "end")
CONFIDENCE = 0.95
#: The reasons of rows without a response: they say nothing about acceptance.
UNANSWERED = frozenset({"teacher_failed", "budget_reached"})
#: The stages of the estimate whose requests are in proportion to the examples.
_PER_EXAMPLE = frozenset({"consistency_filter", "cot"})
#: It pays to go as deep as an example costs at most so many times as much as in the best part.
_WORTH = 2
_MAPPED_ROWS = (
    "transform.mode is both, and the pilot covers rewriting alone: a full run also maps datasets, and does not send "
    "their rows. kedro run --pipelines=map shows which."
)


def choose_positions(count: int, rows: int) -> list[tuple[str, int]]:
    """The part and the position of ``rows`` of ``count`` retrieved rows: the first, some in the middle, the last."""
    top, middle, end = (len(part) for part in np.array_split(np.arange(min(count, rows)), 3))
    starts = (0, max(top, (count - middle) // 2), count - end)
    return [
        (part, start + number)
        for part, start, size in zip(PARTS, starts, (top, middle, end), strict=True)
        for number in range(size)
    ]


def measure_acceptance(pilot: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The accepted rows of each part and in ``all``: counts, the share and its Wilson interval (0 to 1), positions."""
    answered = pilot[~pilot["reason"].isin(UNANSWERED)]
    parts = {part: answered[answered["part"] == part] for part in PARTS} | {"all": answered}
    return {part: _acceptance(rows) for part, rows in parts.items() if len(rows)}


def _acceptance(rows: pd.DataFrame) -> dict[str, Any]:
    from scipy.stats import binomtest

    accepted = int(rows["reason"].isna().sum())
    interval = binomtest(accepted, len(rows)).proportion_ci(CONFIDENCE, "wilson")
    return {
        "first": int(rows["position"].min()), "last": int(rows["position"].max()), "rows": len(rows),
        "accepted": accepted, "value": accepted / len(rows), "low": interval.low, "high": interval.high,
    }  # fmt: skip


def estimate_full_run(
    pilot: pd.DataFrame, estimate: dict[str, Any], teacher: CachedTeacher, parameters: TransformParameters
) -> dict[str, Any]:
    """Estimate a full run from the pilot: acceptance, the ``rows_needed``, the ``examples``, ``depth``, and its cost.

    The acceptance of a row is interpolated between the parts. Rows and examples are ``[low, expected, high]``: the
    bounds scale it to the interval of all parts. ``depth`` is the last position at which an example costs at most
    twice as much as in the best part. ``stages`` and ``total`` have the form of ``estimate``, with the measured
    tokens of transform; the requests of the pilot are part of them. In the mode ``both`` their low
    ends are 0, because transform sends no rows of mapped datasets.
    """
    acceptance, count = measure_acceptance(pilot), estimate["rows"]
    total, parts = acceptance["all"], [acceptance[part] for part in PARTS if part in acceptance]
    centers = [(part["first"] + part["last"]) / 2 for part in parts]
    rates = np.interp(np.arange(count), centers, [part["value"] for part in parts])
    if total["accepted"]:
        scales = [total[bound] / total["value"] for bound in ("high", "value", "low")]
        runs = [_run(rates * scale, parameters.max_examples) for scale in scales]
    else:
        runs = [(min(count, parameters.patience or count), 0)] * 3
    needed, examples = [rows for rows, _ in runs], sorted(made for _, made in runs)
    best = max(part["value"] for part in parts)
    fewest = 0 if parameters.mode == "both" else 1
    sent = pilot[pilot["input_tokens"].notna()]
    requests = [math.ceil(len(sent) / len(pilot) * rows) for rows in (fewest * needed[0], needed[2])]
    stages = {"transform": np.outer([1, *sent[["input_tokens", "output_tokens"]].mean()], requests).round()}
    stages |= {name: read_estimate(costs) for name, costs in estimate["stages"].items() if name != "transform"}
    # The estimate of these stages is for this number of examples.
    planned = min(parameters.max_examples, max(1, estimate["stages"]["transform"]["requests"][1]))
    for stage in _PER_EXAMPLE.intersection(stages):
        stages[stage] = np.outer(stages[stage][:, 1] / planned, [fewest * examples[0], examples[2]]).round()
    return {
        **{name: estimate[name] for name in ("task", "teacher", "price", "rows")},
        "stage": "pilot estimate",
        "mode": parameters.mode,
        "tokens": "as measured in the pilot",
        "max_examples": parameters.max_examples,
        "acceptance": acceptance,
        "rows_needed": needed,
        "examples": examples,
        "depth": int(np.flatnonzero(rates * _WORTH >= best).max()) + 1 if best else 0,
        "stages": {stage: summarize_estimate(numbers, teacher.price) for stage, numbers in stages.items()},
        "total": summarize_estimate(np.sum([*stages.values()], axis=0), teacher.price),
    }


def _run(rates: np.ndarray, wanted: int) -> tuple[int, int]:
    """The rows that a run takes and the examples that it makes, if rows are accepted at these rates."""
    made = np.minimum(1, rates).cumsum()
    rows = int(np.searchsorted(made, wanted - 1e-9)) + 1
    return min(rows, len(rates)), min(wanted, math.floor(made[-1] + 1e-9))


def advise(estimate: Mapping[str, Any]) -> list[str]:
    """What the pilot tells about the depth of the ranking, and what it does not cover, as sentences."""
    acceptance, count, wanted = estimate["acceptance"], estimate["rows"], estimate["max_examples"]
    (fewest, rows, most), (few, examples, many) = estimate["rows_needed"], estimate["examples"]
    mapped = [_MAPPED_ROWS] if estimate["mode"] == "both" else []
    if not acceptance["all"]["accepted"]:
        return ["Nothing was accepted: a full run would stop early, and no depth of the ranking pays.", *mapped]
    if examples < wanted:
        first = f"All {count} rows give about {examples} examples ({few} to {many}); {wanted} are wanted."
    else:
        first = f"A full run takes about {rows} of {count} rows ({fewest} to {most}) for {wanted} examples."
    parts = [acceptance[part] for part in PARTS if part in acceptance]
    best, end = max(part["value"] for part in parts), parts[-1]
    if estimate["depth"] < count:
        at_end = f"{1 / end['value']:.1f} at the end" if end["value"] else "nothing was accepted at the end"
        second = (
            f"It pays to go to about row {estimate['depth']}: an example takes {1 / best:.1f} rows where most pass, "
            f"and {at_end}."
        )
    else:
        second = "It pays to go to the end of the ranking" + (
            ", and deeper: raise retrieve.top_n." if examples < wanted else "."
        )
    overlap = max(part["low"] for part in parts) < min(part["high"] for part in parts)
    differ = len({part["value"] for part in parts}) > 1
    doubt = ["The intervals of the parts overlap: a larger pilot.rows tells them apart."] if overlap and differ else []
    return [first, second, *doubt, *mapped]
