"""Report: the embedding map, and the record of the run; the page itself is ``rebase.reporting.report.write_report``."""

import json
from typing import Any

import numpy as np
import pandas as pd

from rebase.datastore.encoder import Encoder
from rebase.datastore.sampling import systematic_positions
from rebase.records import Task
from rebase.reporting.plots import KINDS
from rebase.reporting.runs import make_record

#: Points of each kind on the map; more are taken by even stride.
MAX_POINTS = 500
_SHOWN = 400  # characters of a point's text
_FEW = 10  # fewer points have no neighborhoods that t-SNE could keep


def project_embeddings(
    task: Task,
    retrieved: pd.DataFrame,
    reasoned_examples: pd.DataFrame,
    evaluation_items: pd.DataFrame,
    encoder: Encoder,
) -> pd.DataFrame:
    """Where source rows, examples and evaluation items lie: in two dimensions, and the items beside the examples.

    One line a point: ``kind`` (one of ``rebase.reporting.plots.KINDS``), ``id``, ``dataset``, ``text``, ``x``, ``y``; of an
    evaluation item also ``cosine`` to the nearest of *all* examples, and ``nearest_id``, that example. A row's text
    is its passage, or the cell that matched the queries best; of the others the query's fields count, for the words
    of the task's template stand in every one.
    """
    rows = retrieved.iloc[systematic_positions(len(retrieved), MAX_POINTS)]
    items = evaluation_items.iloc[systematic_positions(len(evaluation_items), MAX_POINTS)]
    examples = reasoned_examples.reset_index(drop=True)
    frames = [
        pd.DataFrame({"id": rows["row_id"], "dataset": rows["dataset"], "text": _row_texts(rows)}),
        pd.DataFrame({"id": items["item_id"], "dataset": "", "text": _query_texts(task, items)}),
        pd.DataFrame(
            {"id": examples["example_id"], "dataset": examples["dataset"], "text": _query_texts(task, examples)}
        ),
    ]
    points = pd.concat([frame.assign(kind=kind) for kind, frame in zip(KINDS, frames, strict=True)], ignore_index=True)
    with encoder.open() as opened:
        vectors = opened.encode(points["text"].to_list()).vectors
    is_item, is_example = (points["kind"].eq(kind).to_numpy() for kind in KINDS[1:])
    points[["cosine", "nearest_id"]] = np.nan, None
    if is_example.any():
        cosines = vectors[is_item] @ vectors[is_example].T
        points.loc[is_item, "cosine"] = cosines.max(axis=1)
        points.loc[is_item, "nearest_id"] = points.loc[is_example, "id"].to_numpy()[cosines.argmax(axis=1)]
    # All examples count for what is nearest; the map has room for some.
    drawn = np.flatnonzero(~is_example)
    drawn = np.r_[drawn, np.flatnonzero(is_example)[systematic_positions(int(is_example.sum()), MAX_POINTS)]]
    shown = points.iloc[drawn].reset_index(drop=True)
    shown[["x", "y"]] = project(vectors[drawn])
    return shown.assign(text=shown["text"].str[:_SHOWN])


def record_run(
    parameters: dict[str, Any], scores: dict[str, Any], teacher_usage: pd.DataFrame, *summaries: dict[str, Any]
) -> dict[str, Any]:
    """What this run was made with and what it cost: ``rebase.reporting.runs.make_record``; missing numbers are null."""
    usage = json.loads(teacher_usage.to_json(orient="records"))
    return make_record(parameters, scores, summaries, usage)


def project(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors ``[n, d]`` to ``[n, 2]`` by scikit-learn's t-SNE.

    Points that are near one another were near before; how far groups lie apart says nothing. It begins at the
    principal components, and few vectors get no more than these.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(vectors) < _FEW:
        components = max(0, min(2, len(vectors) - 1, vectors.shape[1]))
        flat = PCA(components).fit_transform(vectors) if components else vectors[:, :0]
        return np.pad(flat, ((0, 0), (0, 2 - components)))
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    # Half the usual iterations take half the time, and a picture is all that is wanted.
    return TSNE(init="pca", perplexity=perplexity, max_iter=500, random_state=0).fit_transform(vectors)


def _row_texts(rows: pd.DataFrame) -> "pd.Series[str]":
    return rows["passage"].where(rows["passage"].notna(), rows["query_value"]).fillna("").astype(str)


def _query_texts(task: Task, frame: pd.DataFrame) -> list[str]:
    fields = map(json.loads, frame["fields"])
    return ["\n".join(own[name] for name in task.query_fields) for own in fields]
