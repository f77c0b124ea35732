"""Terminal output of a run: one line when a stage ends, one table at the end."""

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partialmethod
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console, Group
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from rebase.records import Task
from rebase.text import shorten

#: The stages in the order of the method.
STAGES = ("ingest", "embed", "index", "retrieve", "map", "transform", "cot", "train", "evaluate")

#: Columns of a console without a terminal: more than any table has.
_NO_WRAP = 1000

# Control characters (without line break and tab), lone surrogates, and marks that change the text direction.
_ESCAPED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def make_console() -> Console:
    """A console as wide as the terminal; without one, no line is wrapped and no table is narrowed."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _NO_WRAP
    return console


class _PlainHandler(logging.Handler):
    """Prints each message as one line on stdout, as Kedro's handler does in a terminal with color and columns."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


def use_plain_logs() -> None:
    """Without a terminal, replace Kedro's handler of log messages: it wraps them at 80 columns."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, RichHandler) and not handler.console.is_terminal:
            plain = _PlainHandler(handler.level)
            plain.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
            root.removeHandler(handler)
            root.addHandler(plain)


def set_up_bars() -> None:
    """Erase each progress bar at its end; without a terminal, print a line every 30 seconds instead of a bar."""
    settings: dict[str, Any] = {"leave": False}
    if not sys.stderr.isatty():
        line = "{desc}: {n_fmt}/{total_fmt}, {elapsed}, {remaining} left{postfix}"
        settings |= {"delay": 20, "mininterval": 30, "maxinterval": 30, "bar_format": line}
        tqdm.status_printer = staticmethod(lambda file: lambda line: line and print(line, file=file, flush=True))
    tqdm.__init__ = partialmethod(tqdm.__init__, **settings)  # type: ignore[method-assign, assignment]


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
    table = make_table("", ">requests", ">tokens in", ">tokens out", ">dollars", ">by batches", title=title)
    for column in table.columns[1:]:  # In a narrow terminal a range is two lines; no number is broken.
        column.no_wrap = False
    for stage, costs in [*estimate["stages"].items(), ("total", estimate["total"])]:
        cells = [_range(costs[name]) for name in ("requests", "input_tokens", "output_tokens")]
        cells += [_dollars(costs["dollars"]), _dollars(costs["dollars_batch"])]
        table.add_row(stage, *(cell.replace("–", "– ") for cell in cells))
    table.caption = f"{estimate['rows']:,} rows · {estimate['price']} · tokens {estimate['tokens']}"
    return table


def retrieved_lines(retrieved: pd.DataFrame, count: int) -> Iterator[str]:
    """A table of the first rows, at most 80 columns wide: the beginning of the passage, or of the longest cell."""
    yield f"{'rank':>4}  score  {'dataset':<24}  text"
    for row in retrieved.head(count).itertuples():
        # A missing passage is None, or NaN where no row has one.
        longest = max(map(str, json.loads(row.row).values()), key=len)
        text = visible(row.passage if isinstance(row.passage, str) else longest)
        yield f"{row.rank:>4}  {row.score:.3f}  {row.dataset[-24:]:<24}  {shorten(text, 41)}"


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
        if (summary := summaries.get(stage)) and (summary["in"] or stage != "map"):
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


def grades_table(judge_scores: Mapping[str, Any]) -> Table:
    """The judge's mean grades of each system, with intervals, and who wins side by side."""
    title = f"rebase · grades from 1 to 5 by {judge_scores['judge']}"
    table = make_table("system", "criterion", ">grade", ">interval", ">answers", title=title)
    for system, grades in judge_scores["grades"].items():
        for criterion, cell in grades.items():
            if "value" in cell:
                interval = f"{cell['low']:.2f}–{cell['high']:.2f}"
                table.add_row(system, criterion, f"{cell['value']:.2f}", interval, f"{cell['n']:,}")
    lines = [f"Do not trust this judge: {doubt}" for doubt in judge_scores.get("doubts", [])]
    pairwise = judge_scores.get("pairwise", {})
    if "win" in pairwise:
        one, other = pairwise["systems"]
        won, lost = pairwise["win"]["value"], pairwise["loss"]["value"]
        lines.insert(0, f"Side by side, {one} wins {won:.1f} % against {other} and loses {lost:.1f} %.")
    table.caption, table.caption_justify = "\n".join(map(escape, lines)), "left"
    return table


def comparison_tables(task: str, comparison: pd.DataFrame, scores: Mapping[str, Any]) -> Group:
    """A table of each metric with every system's score and gain over the base student, and one of the costs.

    A metric that gives every system the score of an earlier one, as the lenient score of labels often does, has a line.
    """
    tables: list[Table] = []
    notes: list[str] = []
    metrics: dict[tuple[float, ...], str] = {}
    several_seeds = bool((comparison["seeds"] > 1).any())
    for metric, lines in comparison.groupby("metric", sort=False):
        if (same := metrics.setdefault((*lines["value"], *lines["seed_mean"].fillna(0)), metric)) != metric:
            notes.append(f"{metric}: the same scores as {same}")
            continue
        columns = ("system", ">score", ">interval", ">gain", ">p", *[">over seeds"] * several_seeds)
        table = make_table(*columns, title=f"rebase · task {task} · {metric}, {scores['n']} items")
        for line in lines.to_dict("records"):
            gain = scores["differences"].get(f"{line['system']} - student", {}).get(metric)
            seeds = f"{line['seed_mean']:.1f} ± {line['seed_deviation']:.1f} ({line['seeds']})"
            table.add_row(
                line["system"],
                f"{line['value']:.1f}",
                f"{line['low']:.1f}–{line['high']:.1f}",
                f"{gain['value']:+.1f}" if gain else "",
                ("<0.001" if gain["p"] < 0.001 else f"{gain['p']:.3f}") if gain else "",
                *[seeds if line["seeds"] > 1 else ""] * several_seeds,
            )
        tables.append(table)
    costs = make_table("system", ">examples", ">requests", ">dollars", ">minutes", title="Costs")
    for line in comparison.drop_duplicates("system").to_dict("records"):
        costs.add_row(
            line["system"],
            f"{line['examples']:,}",
            "unknown" if pd.isna(line["requests"]) else f"{line['requests']:,.0f}",
            "no price" if pd.isna(line["dollars"]) else f"{line['dollars']:.4f}",
            f"{line['minutes']:.1f}",
        )
    reasons: dict[str, list[str]] = {}
    for name, reason in scores.get("left_out", {}).items():
        reasons.setdefault(reason, []).append(name)
    left_out = [f"Left out: {', '.join(names)}. {reason}" for reason, names in reasons.items()]
    legend = "gain: over the base student, paired; p: permutation test; minutes: training"
    return Group(*tables, costs, *map(escape, [*notes, legend, *scores.get("warnings", []), *left_out]))


def make_table(*columns: str, title: str) -> Table:
    """A table without lines between columns, for 80 columns; ``>`` before a name aligns the column to the right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), caption_justify="left")
    for column in columns:
        name = column.removeprefix(">")
        table.add_column(name, justify="right" if name != column else "left", no_wrap=True)
    return table


def _reasons(rejected: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(rejected.items(), key=lambda item: -item[1]))
