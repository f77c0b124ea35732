"""What a run prints: one line when a stage ends, one table at the end."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

#: The stages in the order of the method.
STAGES = ("ingest", "embed", "index", "retrieve", "transform", "cot", "train", "evaluate")


def stage_line(summary: Mapping[str, Any], seconds: float) -> str:
    """One line on a stage that has ended: in, kept, refused by reason, Annoy's recall of a retrieval, seconds."""
    parts = [f"{summary['stage']:<9} in {summary['in']:,}", f"kept {summary['kept']:,}"]
    if summary["refused"]:
        parts.append(f"refused {sum(summary['refused'].values()):,} ({_reasons(summary['refused'])})")
    if summary.get("annoy_recall") is not None:
        parts.append(f"Annoy's recall {summary['annoy_recall']:.2f}")
    return f"{' · '.join(parts)} · {seconds:.0f} s"


def final_table(task: str, summaries: Mapping[str, Mapping[str, Any]], scores: Mapping[str, Any]) -> Table:
    """The run in one table: what became of the rows, and every system's scores with their intervals."""
    table = Table(title=f"rebase · task {task}", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for stage in STAGES:
        if summary := summaries.get(stage):
            refused = f"; refused: {_reasons(summary['refused'])}" if summary["refused"] else ""
            table.add_row(stage, f"{summary['kept']:,} of {summary['in']:,}{refused}")
    table.add_section()
    for system, metrics in scores["systems"].items():
        for metric, score in metrics.items():
            table.add_row(
                f"{system} · {metric}",
                f"{score['value']:.1f}  [{score['low']:.1f}, {score['high']:.1f}]  (n = {scores['n']})",
            )
    return table


def _reasons(refused: Mapping[str, int]) -> str:
    ordered = sorted(refused.items(), key=lambda item: -item[1])
    return ", ".join(f"{reason} {count:,}" for reason, count in ordered)
