"""The run's report: one HTML page that needs nothing beside it."""

import json
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from rebase.records import Task

_TEMPLATE = "report.html.j2"
_SHOWN = 4
_LONG = 1200


def write_report(
    task: Task,
    scores: dict[str, Any],
    predictions: pd.DataFrame,
    retrieved: pd.DataFrame,
    examples: pd.DataFrame,
    *summaries: dict[str, Any],
) -> str:
    """The report as HTML: the flow with its counts, the scores, examples beside their rows, items won and lost.

    ``summaries`` are those of the stages, in their order. Every value is escaped.
    """
    environment = Environment(
        loader=PackageLoader("rebase", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["shorten"] = _shorten
    return environment.get_template(_TEMPLATE).render(
        task=task,
        stages=summaries,
        train=next(summary for summary in summaries if summary["stage"] == "train"),
        scores=scores,
        examples=examples_with_rows(examples, retrieved),
        outcomes=won_and_lost(predictions, task.metrics[0]),
        metric=task.metrics[0],
    )


def examples_with_rows(examples: pd.DataFrame, retrieved: pd.DataFrame) -> list[dict[str, Any]]:
    """A few examples spread over the ranking, each with the row it was written from as ``(column, value)`` pairs."""
    rows = dict(zip(retrieved["row_id"], retrieved["row"], strict=True))
    ordered = examples.sort_values("rank")
    chosen = ordered.iloc[:: max(1, len(ordered) // _SHOWN)].head(_SHOWN)
    return [
        {**example, "source": list(json.loads(rows.get(example["row_id"], "{}")).items())}
        for example in chosen.to_dict("records")
    ]


def won_and_lost(predictions: pd.DataFrame, metric: str) -> dict[str, list[dict[str, Any]]]:
    """A few items on which the expert scores higher than the student, and a few on which it scores lower."""
    student, expert = (
        predictions[predictions["system"] == system].set_index("item_id") for system in ("student", "expert")
    )
    both = expert.join(student[["raw", metric]], rsuffix="_student")
    gain = both[metric] - both[f"{metric}_student"]

    def items(frame: pd.DataFrame) -> list[dict[str, Any]]:
        return [
            {
                "prompt": line["prompt"],
                "answers": json.loads(line["answers"]),
                "student": line["raw_student"],
                "expert": line["raw"],
            }
            for line in frame.head(_SHOWN).to_dict("records")
        ]

    return {"won": items(both[gain > 0]), "lost": items(both[gain < 0])}


def _shorten(text: Any, limit: int = _LONG) -> str:
    text = str(text)
    return text if len(text) <= limit else f"{text[:limit]} …"
