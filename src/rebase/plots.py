"""Pictures of a run, as Plotly figures."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go


def plot_sources(retrieved: pd.DataFrame) -> go.Figure:
    """Where the retrieved rows come from: rows a dataset, most first."""
    counts = retrieved["dataset"].value_counts().sort_values()
    figure = go.Figure(go.Bar(x=counts.to_list(), y=counts.index.to_list(), orientation="h"))
    figure.update_layout(
        title=f"Where the {len(retrieved)} retrieved rows come from",
        xaxis_title="rows",
        height=max(320, 24 * len(counts) + 140),
        margin={"l": 20, "r": 20},
        yaxis={"automargin": True},
    )
    return figure


def plot_scores(scores: dict[str, Any]) -> go.Figure:
    """Each metric before and after training, in percent, with its bootstrap interval."""
    metrics = list(next(iter(scores["systems"].values())))
    figure = go.Figure()
    for system, values in scores["systems"].items():
        cells = [values[metric] for metric in metrics]
        figure.add_bar(
            name=system,
            x=metrics,
            y=[cell["value"] for cell in cells],
            text=[f"{cell['value']:.1f}" for cell in cells],
            error_y={
                "type": "data",
                "array": [cell["high"] - cell["value"] for cell in cells],
                "arrayminus": [cell["value"] - cell["low"] for cell in cells],
            },
        )
    figure.update_layout(
        title=f"{scores['task']}: {scores['n']} items, {scores['confidence']:.0%} intervals",
        yaxis={"title": "percent", "range": [0, 100]},
        barmode="group",
    )
    return figure
