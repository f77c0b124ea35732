"""The pilot's findings: on the terminal, and as one self-contained HTML page."""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.markup import escape

from rebase.generation.pilot import CONFIDENCE, PARTS, advise
from rebase.records import Task
from rebase.reporting.console import estimate_table, make_table, visible
from rebase.reporting.report import render_page
from rebase.text import shorten

_TEMPLATE = "pilot.html.j2"
#: Characters of a cell, and of a prompt or a response, on the terminal.
_CELL, _LONG = 66, 600


def write_pilot(
    task: Task, pilot: pd.DataFrame, pilot_summary: Mapping[str, Any], pilot_estimate: Mapping[str, Any]
) -> str:
    """Render the pilot as HTML: rows beside examples, acceptance, cost, and the prompt and response of three rows."""
    lines = _lines(task, pilot)
    return render_page(
        _TEMPLATE,
        task=task,
        lines=lines,
        shown=_shown(lines),
        summary=pilot_summary,
        estimate=pilot_estimate,
        advice=advise(pilot_estimate),
        confidence=CONFIDENCE,
    )


def show_pilot(
    task: Task, pilot: pd.DataFrame, pilot_summary: Mapping[str, Any], pilot_estimate: Mapping[str, Any]
) -> RenderableType:
    """The same for a terminal of 80 columns."""
    lines = _lines(task, pilot)
    rows = make_table(
        ">row", "source row", "example, or why there is none", title=f"rebase · pilot of task {task.name}"
    )
    for column in rows.columns[1:]:
        column.no_wrap = False
    for line in lines:
        answer = _short(line["answer"] or "", _CELL // 2)
        example = f"{_short(line['written'], _CELL - len(answer))} → {answer}"
        outcome = _short(f"{line['reason']} {line['detail'] or ''}", _CELL) if line["reason"] else example
        rows.add_row(str(line["position"]), _short(line["source"], _CELL), outcome)
    acceptance = make_table("", ">rows", ">accepted", f">{CONFIDENCE:.0%} interval", title="Accepted by rank")
    for part, cell in pilot_estimate["acceptance"].items():
        interval = f"{cell['low']:.0%} to {cell['high']:.0%}"
        span = f"{cell['first']} to {cell['last']}"
        acceptance.add_row(part, span, f"{cell['accepted']} of {cell['rows']}", interval)
    exchanges = [
        f"\n[bold]Row {line['position']}: the prompt ends[/bold]\n{_short(line['turns'][-1]['content'], _LONG)}"
        f"\n[bold]Response[/bold]\n{_short(line['response'], _LONG)}"
        for line in _shown(lines)
    ]
    words = [pilot_summary["nothing_kept"]] if pilot_summary["nothing_kept"] else advise(pilot_estimate)
    return Group(
        rows, *exchanges, "", acceptance, estimate_table(pilot_estimate), *(escape(visible(text)) for text in words)
    )


def _lines(task: Task, pilot: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of the table, with their cells, what the teacher wrote, and the messages of the prompt."""
    lines = []
    for line in pilot.astype(object).where(pilot.notna(), None).to_dict("records"):
        cells = {"": line["passage"]} if line["passage"] else json.loads(line["row"])
        fields = json.loads(line["fields"] or "{}")
        lines.append(
            line
            | {
                "cells": cells,
                "source": " · ".join(map(str, cells.values())),
                "written": " · ".join(fields[name] for name in task.written_fields if name in fields),
                "turns": json.loads(line["prompt"] or "[]"),
            }
        )
    return lines


def _shown(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row of each part that has a response."""
    answered = [next((line for line in lines if line["part"] == part and line["response"]), None) for part in PARTS]
    return [line for line in answered if line]


def _short(text: str, limit: int) -> str:
    return escape(visible(shorten(text, limit)))
