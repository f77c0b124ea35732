"""Pictures of a run, as Plotly figures."""

import pandas as pd
import plotly.graph_objects as go


def plot_sources(retrieved: pd.DataFrame) -> go.Figure:
    """Where the retrieved rows come from: rows a dataset, most first."""
    counts = retrieved["dataset"].value_counts().sort_values()
    figure = go.Figure(go.Bar(x=counts.to_numpy(), y=counts.index.to_list(), orientation="h"))
    figure.update_layout(
        title=f"Where the {len(retrieved)} retrieved rows come from",
        xaxis_title="rows",
        height=max(320, 24 * len(counts) + 140),
        margin={"l": 20, "r": 20},
        yaxis={"automargin": True},
    )
    return figure
