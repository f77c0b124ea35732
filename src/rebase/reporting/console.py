"""Terminal output of a run: one line when a stage ends, one table at the end."""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

from rebase.records import Task

#: The stages in the order of the method.
STAGES = ("ingest", "embed", "index", "retrieve", "transform", "cot", "train", "evaluate")


# Control characters (without line break and tab), lone surrogates, and marks that change the text direction.
_ESCAPED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Escape what a terminal would interpret or cannot print, so that untrusted text stays text."""
    return _ESCAPED.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)


def stage_line(summary: Mapping[str, Any], seconds: float) -> str:
    """One line about a finished stage: in, kept, rejected by reason, Annoy's recall, teacher usage, seconds."""
    parts = [f"{summary['stage']:<9} in {summary['in']:,}", f"kept {summary['kept']:,}"]
    if summary["rejected"]:
        parts.append(f"rejected {sum(summary['rejected'].values()):,} ({_reasons(summary['rejected'])})")
    if summary.get("annoy_recall") is not None:
        parts.append(f"Annoy's recall {summary['annoy_recall']:.2f}")
    usage = summary.get("usage") or {}
    if usage.get("used"):
        cached = f", {usage['cached']:,} cached" if usage["cached"] else ""
        dollars = f", ${usage['dollars']:.4f}" if usage["dollars"] else ""
        parts.append(f"{usage['responses']:,} responses{cached}{dollars}")
    return " · ".join([*parts, f"{seconds:.0f} s"])


def estimate_line(estimate: Mapping[str, Any]) -> str:
    """One line about the requests to the teacher and their cost."""
    total = estimate["total"]
    parts = [f"{estimate['stage']}  {_range(total['requests'])} requests to {estimate['teacher']}"]
    parts.append(f"tokens in {_range(total['input_tokens'])}, out {_range(total['output_tokens'])}")
    if total["dollars"] is None:
        parts.append(estimate["price"])
    elif any(total["dollars"]):
        parts.append(f"{_dollars(total['dollars'])}, by batches {_dollars(total['dollars_batch'])}")
    return " · ".join(parts)


def estimate_table(estimate: Mapping[str, Any]) -> Table:
    """The estimated requests, tokens and dollars of each stage, from low to high."""
    title = f"rebase · estimated cost of {estimate['teacher']} for task {estimate['task']}"
    table = Table(title=title, title_justify="left")
    for column in ("", "requests", "tokens in", "tokens out", "dollars", "by batches"):
        table.add_column(column, justify="right" if column else "left", overflow="fold")
    for stage, costs in [*estimate["stages"].items(), ("total", estimate["total"])]:
        counts = (_range(costs[name]) for name in ("requests", "input_tokens", "output_tokens"))
        table.add_row(stage, *counts, _dollars(costs["dollars"]), _dollars(costs["dollars_batch"]))
    table.caption = f"{estimate['rows']:,} rows · {estimate['price']} · tokens {estimate['tokens']}"
    return table


def retrieved_lines(retrieved: pd.DataFrame, count: int) -> Iterator[str]:
    """A table of the best rows, at most 80 columns wide: the beginning of the passage, or of the longest cell."""
    yield f"{'rank':>4}  score  {'dataset':<24}  text"
    for row in retrieved.head(count).itertuples():
        text = visible(row.passage or max(map(str, json.loads(row.row).values()), key=len))
        yield f"{row.rank:>4}  {row.score:.3f}  {row.dataset[-24:]:<24}  {textwrap.shorten(text, 41, placeholder='…')}"


def ask_line(task: Task, env: str | None) -> str:
    """The command that asks the trained expert, as the last line of a run in an environment."""
    options = [
        f"--task={task.name}",
        *([f"--env={env}"] if env else []),
        *(f'--{name}="…"' for name in task.query_fields),
    ]
    return f"Next: kedro ask {' '.join(options)}"


def _range(pair: Sequence[float]) -> str:
    return "–".join(f"{value:,.0f}" for value in dict.fromkeys(pair))


def _dollars(pair: Sequence[float] | None) -> str:
    return "no price" if pair is None else "–".join(dict.fromkeys(f"${value:,.4f}" for value in pair))


def final_table(task: str, summaries: Mapping[str, Mapping[str, Any]], scores: Mapping[str, Any]) -> Table:
    """The run in one table: kept and rejected rows of each stage, and each system's scores with intervals."""
    table = Table(title=f"rebase · task {task}", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for stage in STAGES:
        if summary := summaries.get(stage):
            rejected = f"; rejected: {_reasons(summary['rejected'])}" if summary["rejected"] else ""
            table.add_row(stage, f"{summary['kept']:,} of {summary['in']:,}{rejected}")
    table.add_section()
    for system, metrics in scores["systems"].items():
        for metric, score in metrics.items():
            interval = f"{score['value']:.1f}  [{score['low']:.1f}, {score['high']:.1f}]"
            table.add_row(f"{system} · {metric}", f"{interval}  (n = {scores['n']})")
    table.caption = "\n".join(map(escape, [scores.get("verdict", ""), *scores.get("warnings", [])]))
    table.caption_justify = "left"
    return table


def comparison_table(task: str, comparison: pd.DataFrame, scores: Mapping[str, Any]) -> Table:
    """Each system's score, cost and gain over the base student."""
    table = Table(title=f"rebase · task {task}: {scores['n']} items", title_justify="left")
    seeded = bool((comparison["seeds"] > 1).any())
    columns = ["system", "metric", "score", "interval", "gain", "p", "examples", "requests", "dollars", "minutes"]
    for column in columns + ["over seeds"] * seeded:
        table.add_column(column, justify="left" if column in ("system", "metric") else "right")
    for line in comparison.to_dict("records"):
        gain = scores["differences"].get(f"{line['system']} - student", {}).get(line["metric"])
        several = (
            f"{line['seed_mean']:.1f} ± {line['seed_deviation']:.1f} ({line['seeds']})" if line["seeds"] > 1 else ""
        )
        table.add_row(
            line["system"],
            line["metric"],
            f"{line['value']:.1f}",
            f"{line['low']:.1f}–{line['high']:.1f}",
            f"{gain['value']:+.1f}" if gain else "",
            ("<0.001" if gain["p"] < 0.001 else f"{gain['p']:.3f}") if gain else "",
            f"{line['examples']:,}",
            "unknown" if pd.isna(line["requests"]) else f"{line['requests']:,.0f}",
            "no price" if pd.isna(line["dollars"]) else f"{line['dollars']:.4f}",
            f"{line['minutes']:.1f}",
            *([several] * seeded),
        )
    left_out = [f"Left out: {name}. {reason}" for name, reason in scores.get("left_out", {}).items()]
    caption = "gain: over the base student, paired; p: permutation test; minutes: training"
    table.caption = "\n".join(map(escape, [caption, *left_out]))
    return table


def _reasons(rejected: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(rejected.items(), key=lambda item: -item[1]))
