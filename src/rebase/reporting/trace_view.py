"""A trace as a table for the terminal; the contents of rows and responses are printed as plain text."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rebase.reporting.console import visible

#: The terminal shows the start of longer values, and the first rows of longer tables.
_MAX_CHARACTERS, _MAX_ROWS = 1_500, 40


def render_trace(trace: Mapping[str, Any]) -> RenderableType:
    """Render a trace for the terminal."""
    title = Text(f"{trace['kind']} ", style="dim") + Text(visible(trace["id"]), style="bold")
    return Group(title, *(_section(name, value) for name, value in trace.items() if name not in ("kind", "id")))


def _section(name: str, value: Any) -> RenderableType:
    parts = value if isinstance(value, list) else [value]
    heading = Text(f"\n{name.replace('_', ' ')}", style="bold cyan")
    if not parts:
        return Group(heading, Text("  none", style="dim"))
    if name in ("rows", "duplicates_in_other_datasets"):
        return Group(heading, _table(parts))
    shown = [_grid(part) if isinstance(part, Mapping) else _cell(part) for part in parts]
    return Group(heading, shown[0], *(piece for part in shown[1:] for piece in (Text(), part)))


def _grid(values: Mapping[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=True, padding=(0, 1))
    table.add_column(style="green", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        parts = value if isinstance(value, list) else [value]
        nested = [_grid(part) for part in parts] if parts and isinstance(parts[0], Mapping) else []
        table.add_row(Text(visible(name)), Group(*nested) if nested else _cell(value))
    return table


def _table(lines: list[dict[str, Any]]) -> RenderableType:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in lines[0]:
        table.add_column(name, overflow="fold")
    for line in lines[:_MAX_ROWS]:
        table.add_row(*map(_cell, line.values()))
    hidden = [Text(f"  and {len(lines) - _MAX_ROWS:,} more; --json has all", style="dim")]
    return Group(table, *(hidden if len(lines) > _MAX_ROWS else []))


def _cell(value: Any) -> Text:
    if value is None or value in ("", []):
        return Text("–", style="dim")
    if isinstance(value, float):
        return Text(f"{value:.4g}")
    content = ", ".join(map(str, value)) if isinstance(value, list) else str(value).rstrip()
    text = Text(visible(content[:_MAX_CHARACTERS]))
    if len(content) > _MAX_CHARACTERS:
        text.append(f" … {len(content) - _MAX_CHARACTERS:,} characters more; --json has all", style="dim")
    return text
