"""Plotly figures of a run."""

import html
import textwrap
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots

#: Kinds of points on the embedding map, in drawing order: the fewest last, on top.
KINDS = ("source row", "evaluation item", "example")

#: Histogram bins, datasets shown separately, and points shown as markers, at most.
_BINS, _DATASETS, _MARKERS = 32, 25, 60
#: The color of a system in every picture; others get the next free one. ReBase is blue.
_COLORS = {
    "student": "#9aa3b2", "student_few_shot": "#667085", "expert": "#2f6fde", "rebase": "#2f6fde",
    "rebase_cot": "#8e5bd0", "synthesized": "#1c9e6b", "distilled": "#e8710a", "teacher": "#0b93ad",
}  # fmt: skip
#: Color, symbol and size of the kinds of points.
_MARKS = (("#9aa3b2", "circle", 6), ("#e8710a", "diamond", 8), ("#2f6fde", "circle", 7))


def plot_sources(retrieved: pd.DataFrame) -> go.Figure:
    """The retrieved rows of each dataset, most first, with small datasets combined."""
    counts = retrieved["dataset"].value_counts()
    if len(counts) > _DATASETS:
        others = pd.Series({f"{len(counts) - _DATASETS} others": counts[_DATASETS:].sum()})
        counts = pd.concat([counts[:_DATASETS], others])
    counts = counts[::-1]
    figure = go.Figure(go.Bar(x=counts.to_list(), y=counts.index.to_list(), orientation="h"))
    title, height = f"Where the {len(retrieved)} retrieved rows come from", max(320, 24 * len(counts) + 140)
    return figure.update_layout(title=title, xaxis_title="rows", height=height, yaxis={"automargin": True})


def plot_scores(scores: dict[str, Any]) -> go.Figure:
    """Each metric of each system, in percent, with bootstrap intervals."""
    metrics = list(next(iter(scores["systems"].values())))
    figure = go.Figure()
    for system, values in scores["systems"].items():
        cells = pd.DataFrame([values[metric] for metric in metrics])
        figure.add_bar(
            name=system,
            marker_color=_COLORS.get(system),
            x=metrics,
            y=cells["value"].to_list(),
            text=[f"{value:.1f}" for value in cells["value"]],
            insidetextanchor="start",
            textangle=0,
            error_y=_error_bars(cells),
        )
    return figure.update_layout(
        title=f"{scores['task']}: {scores['n']} items, {scores['confidence']:.0%} intervals",
        yaxis={"title": "percent", "range": [0, 100]},
        barmode="group",
    )


def plot_curves(curves: pd.DataFrame) -> go.Figure:
    """Each metric over the number of examples: the mean over seeds of each training set, and each run as a marker."""
    metrics = list(dict.fromkeys(curves["metric"]))
    colors = dict(zip(curves["training_set"].unique(), qualitative.Plotly, strict=False)) | _COLORS
    figure = make_subplots(
        rows=len(metrics), cols=1, shared_xaxes=True, subplot_titles=metrics, vertical_spacing=0.16 / len(metrics)
    )
    figure.update_annotations(font_size=13)
    for row, metric in enumerate(metrics, 1):
        for name, runs in curves[curves["metric"] == metric].groupby("training_set", sort=False):
            place = {"name": name, "legendgroup": name, "row": row, "col": 1}
            means = runs.groupby("examples")["value"].mean()
            figure.add_scatter(
                x=means.index, y=means, mode="lines", line_color=colors[name], showlegend=row == 1, **place
            )
            figure.add_scatter(
                x=runs["examples"], y=runs["value"], mode="markers", marker_color=colors[name], showlegend=False,
                text=[f"seed {seed}" for seed in runs["seed"]], error_y=_error_bars(runs), **place,
            )  # fmt: skip
        figure.update_yaxes(title="percent", rangemode="tozero", row=row, col=1)
    figure.update_xaxes(title="examples", row=len(metrics), col=1)
    return figure.update_layout(title="Scores by number of examples", height=280 * len(metrics) + 120)


def plot_loss(training_log: pd.DataFrame) -> go.Figure:
    """The training loss of each step, and the validation loss if it was measured."""
    figure = go.Figure(go.Scatter(name="training", x=[*training_log["step"]], y=[*training_log["loss"]], mode="lines"))
    measured = training_log.reindex(columns=["step", "validation_loss"]).dropna()
    if len(measured):
        figure.add_scatter(name="validation", x=measured["step"], y=measured["validation_loss"], mode="lines+markers")
    yaxis = {"title": "nats per token", "rangemode": "tozero"}
    return figure.update_layout(title="Loss on completions", xaxis_title="step", yaxis=yaxis)


def plot_scores_of_rows(retrieved: pd.DataFrame) -> go.Figure:
    """The distribution of the retrieved rows' scores, and of the three cosines whose mean they are."""
    names = {"score": "score", "score_dataset": "dataset", "score_query": "query", "score_answer": "answer"}
    bins = int(np.clip(2 * len(retrieved) ** (1 / 3), 12, _BINS))
    edges = np.histogram_bin_edges(retrieved[list(names)].to_numpy(dtype=float), bins)
    figure = go.Figure()
    for column, name in names.items():
        is_mean = column == "score"
        figure.add_scatter(
            name=name,
            x=(edges[:-1] + edges[1:]) / 2,
            y=np.histogram(retrieved[column], edges)[0],
            mode="lines",
            line={"shape": "hvh", "width": 3 if is_mean else 1.5, "dash": None if is_mean else "dot"},
            fill="tozeroy" if is_mean else None,
        )
    title = f"How well the {len(retrieved)} retrieved rows fit the task"
    return figure.update_layout(title=title, xaxis_title="score, and its three cosines", yaxis_title="rows")


def plot_embedding_map(embedding_map: pd.DataFrame) -> go.Figure:
    """Source rows, examples and evaluation items in two dimensions, with their texts as hover labels."""
    figure = go.Figure()
    for kind, (color, symbol, size) in zip(KINDS, _MARKS, strict=True):
        points = embedding_map[embedding_map["kind"] == kind]
        labels = [f"{_plain(dataset)}<br>{_plain(text)}" for dataset, text in points[["dataset", "text"]].to_numpy()]
        marker = {"color": color, "symbol": symbol, "size": size, "opacity": 0.75}
        x, y = points["x"], points["y"]
        figure.add_scatter(name=f"{kind}s", x=x, y=y, mode="markers", marker=marker, hovertext=labels, hoverinfo="text")
    axis = {"visible": False, "showgrid": False, "zeroline": False}
    return figure.update_layout(title="Source rows, examples and evaluation items", xaxis=axis, yaxis=axis, height=560)


def plot_nearness(embedding_map: pd.DataFrame) -> go.Figure:
    """The quantiles of the cosine of each evaluation item to its nearest training example."""
    cosines = embedding_map["cosine"].dropna().sort_values().to_numpy()
    shares = 100 * (np.arange(len(cosines)) + 0.5) / max(1, len(cosines))
    figure = go.Figure(go.Scatter(x=shares, y=cosines, mode="lines+markers" if len(cosines) < _MARKERS else "lines"))
    return figure.update_layout(
        title="Nearest training example of each evaluation item",
        xaxis={"title": "% of the evaluation items", "range": [0, 100]},
        yaxis={"title": "cosine to the nearest example", "range": [min([0.0, *cosines]), 1.02]},
        showlegend=False,
    )


def _error_bars(scores: pd.DataFrame) -> dict[str, Any]:
    """Plotly's error bars of scores with their intervals (``value``, ``low``, ``high``)."""
    above, below = scores["high"] - scores["value"], scores["value"] - scores["low"]
    return {"type": "data", "array": above.to_list(), "arrayminus": below.to_list()}


def _plain(text: str) -> str:
    """A text for a hover label: a few short lines without markup."""
    return "<br>".join(html.escape(line) for line in textwrap.wrap(text, 60, max_lines=6, placeholder=" …"))
