"""Metrics as JSON with a preview as a table."""

import json
from collections.abc import Iterator
from typing import Any

import pandas as pd

from rebase.datasets.checked import CheckedJSON
from rebase.datasets.previews import TablePreview


class MetricsDataset(CheckedJSON):
    """Nested metrics, previewed as a table: kedro-viz's JSON preview hides deeply nested values."""

    def preview(self) -> TablePreview:
        """One line for each metric, named by its path."""
        return TablePreview(pd.DataFrame(_lines(self.load())).fillna("").to_dict(orient="split"))


def _lines(group: dict[str, Any], name: str = "") -> Iterator[dict[str, Any]]:
    if name and not any(isinstance(value, dict) for value in group.values()):
        yield {"metric": name} | {key: _shown(value) for key, value in group.items()}
        return
    for key, value in group.items():
        inner = f"{name} · {key}" if name else key
        if isinstance(value, dict):
            yield from _lines(value, inner)
        else:
            yield {"metric": inner, "value": _shown(value)}


def _shown(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
