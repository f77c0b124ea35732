"""Usage: what the teacher was asked and paid, beside what had been estimated."""

from typing import Any

import pandas as pd


def compare_usage(
    estimate: dict[str, Any], transform_summary: dict[str, Any], cot_summary: dict[str, Any]
) -> pd.DataFrame:
    """One line a stage, and one for both: responses, tokens, dollars, latencies and rate, and what had been estimated.

    ``used`` counts the responses that were bought now and those that were stored; so does ``used_dollars``, which
    compares with the estimate. Seconds are of responses bought now.
    """
    spent = {"transform": transform_summary["usage"], "cot": cot_summary["usage"]}
    lines = [{"stage": stage, **usage, **_expected(_forecast(estimate, stage))} for stage, usage in spent.items()]
    sums = ("used", "responses", "cached", "failed", "repaired", "over_budget", "input_tokens", "output_tokens")
    total: dict[str, Any] = {name: sum(line[name] for line in lines) for name in sums}
    for name in ("dollars", "used_dollars"):
        known = [line[name] for line in lines if line[name] is not None]
        total[name] = sum(known) if len(known) == len(lines) else None
    lines.append({"stage": "total", **total, **_expected(estimate["total"])})
    return pd.DataFrame(lines)


def _forecast(estimate: dict[str, Any], stage: str) -> dict[str, Any] | None:
    """A stage's estimate; transform asks for the round trip as well."""
    stages = estimate["stages"]
    if stage == "transform" and "consistency_filter" in stages:
        both = (stages["transform"], stages["consistency_filter"])
        return {name: _add(*(part[name] for part in both)) for name in ("requests", "dollars")}
    return stages.get(stage)


def _add(one: list[float] | None, other: list[float] | None) -> list[float] | None:
    return [a + b for a, b in zip(one, other, strict=True)] if one is not None and other is not None else None


def _expected(forecast: dict[str, Any] | None) -> dict[str, Any]:
    requests = forecast["requests"] if forecast else [0, 0]
    dollars = (forecast["dollars"] if forecast else [0.0, 0.0]) or [None, None]
    return {
        "estimated_requests_low": requests[0],
        "estimated_requests_high": requests[1],
        "estimated_dollars_low": dollars[0],
        "estimated_dollars_high": dollars[1],
    }
