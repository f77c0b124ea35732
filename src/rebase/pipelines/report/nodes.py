"""Report: how diverse the examples are, what the teacher cost, and where all texts lie in the embedding space."""

import json
from typing import Any

import numpy as np
import pandas as pd

from rebase.datastore.encoder import Encoder
from rebase.datastore.sampling import systematic_positions
from rebase.generation.generate import require_examples
from rebase.generation.verification import label_balance
from rebase.records import EMBEDDING_MAP_COLUMNS, TEACHER_USAGE_COLUMNS, Task
from rebase.reporting.diversity import measure_lengths, measure_texts
from rebase.reporting.plots import KINDS

#: Points of each kind on the map; a systematic sample of more.
MAX_POINTS = 500
#: Characters of a point's text.
_MAX_TEXT = 400
#: t-SNE needs a few neighbors for each point: fewer vectors are projected on their principal components.
_MIN_TSNE = 10


def measure_diversity(task: Task, examples: pd.DataFrame, encoder: Encoder) -> dict[str, Any]:
    """Measure how diverse the training examples are (docs/method.md section 8).

    Returns:
        ``n`` examples; the measures of ``reporting.diversity.measure_texts`` over the query fields (without the words
        of the task's template, which every query repeats); ``labels``, their balance in label tasks; ``sources``, each
        dataset's share of the examples, largest first; ``words``, the lengths of ``query``, ``answer`` and
        ``rationale``. Values are None where the examples lack what is measured.

    """
    require_examples("report", examples)
    queries = _query_texts(task, examples)
    vectors = np.empty((0, 0))
    if len(queries) > 1:
        with encoder.open() as opened:
            vectors = opened.encode(queries).vectors
    answers, rationales, datasets = (
        examples[name].dropna() if name in examples else pd.Series(dtype=object)
        for name in ("answer", "rationale", "dataset")
    )
    return {
        "task": task.name,
        "n": len(queries),
        **measure_texts(queries, vectors),
        "labels": label_balance(task.answer.labels, answers) if task.answer.labels else None,
        "sources": (datasets.value_counts() / len(queries)).to_dict() or None,
        "words": {
            "query": measure_lengths(queries),
            "answer": measure_lengths(answers.to_list()),
            "rationale": measure_lengths(rationales.to_list()),
        },
    }


def compare_usage(
    estimate: dict[str, Any],
    map_summary: dict[str, Any],
    transform_summary: dict[str, Any],
    cot_summary: dict[str, Any],
) -> pd.DataFrame:
    """Compare the teacher's requests and cost with the estimate: one line for each stage, and one for the total.

    ``used`` counts bought and cached responses, and ``used_dollars`` is the price of both: compare these with the
    estimate. Seconds are those of bought responses.
    """
    stages = estimate["stages"]
    lines = [
        {"stage": stage, **summary["usage"], **_add_estimates([stages[part] for part in parts if part in stages])}
        for stage, summary, parts in (
            *[("map", map_summary, ("map", "labels"))] * bool(map_summary["in"]),
            ("transform", transform_summary, ("transform", "consistency_filter")),
            ("cot", cot_summary, ("cot",)),
        )
    ]
    counts = ("used", "responses", "cached", "failed", "repaired", "over_budget", "input_tokens", "output_tokens")
    total: dict[str, Any] = {name: sum(line[name] for line in lines) for name in counts}
    for name in ("dollars", "used_dollars"):
        amounts = [line[name] for line in lines]
        total[name] = None if None in amounts else sum(amounts)
    lines.append({"stage": "total", **total, **_add_estimates([estimate["total"]])})
    return pd.DataFrame(lines, columns=TEACHER_USAGE_COLUMNS)


def project_embeddings(
    task: Task,
    retrieved: pd.DataFrame,
    reasoned_examples: pd.DataFrame,
    evaluation_items: pd.DataFrame,
    encoder: Encoder,
) -> pd.DataFrame:
    """Project source rows, examples and evaluation items to two dimensions, and find each item's nearest example.

    Returns:
        One line for each point (``EMBEDDING_MAP_COLUMNS``). ``kind`` is one of ``reporting.plots.KINDS``; an evaluation
        item also has its ``cosine`` to the nearest of *all* examples, and that one's ``nearest_id``. The text of a row
        is its passage, or the cell that matched the queries best; the text of items and examples is their query fields,
        without the words of the task's template.

    """
    require_examples("report", reasoned_examples)
    rows = retrieved.iloc[systematic_positions(len(retrieved), MAX_POINTS)]
    items = evaluation_items.iloc[systematic_positions(len(evaluation_items), MAX_POINTS)]
    examples = reasoned_examples
    row_texts = rows["passage"].where(rows["passage"].notna(), rows["query_value"]).fillna("").astype(str)
    columns = (
        (rows["row_id"], rows["dataset"], row_texts),
        (items["item_id"], "", _query_texts(task, items)),
        (examples["example_id"], examples["dataset"], _query_texts(task, examples)),
    )
    frames = [
        pd.DataFrame({"id": ids, "dataset": datasets, "text": texts, "kind": kind})
        for kind, (ids, datasets, texts) in zip(KINDS, columns, strict=True)
    ]
    points = pd.concat(frames, ignore_index=True)
    with encoder.open() as opened:
        vectors = opened.encode(points["text"].to_list()).vectors
    is_item, is_example = (points["kind"].eq(kind).to_numpy() for kind in KINDS[1:])
    points[["cosine", "nearest_id"]] = np.nan, None
    if is_example.any():
        cosines = vectors[is_item] @ vectors[is_example].T
        points.loc[is_item, "cosine"] = cosines.max(axis=1)
        points.loc[is_item, "nearest_id"] = points.loc[is_example, "id"].to_numpy()[cosines.argmax(axis=1)]
    # The nearest example is searched among all examples; the map shows a sample of them.
    sampled = np.flatnonzero(is_example)[systematic_positions(int(is_example.sum()), MAX_POINTS)]
    drawn = np.r_[np.flatnonzero(~is_example), sampled]
    shown = points.iloc[drawn].reset_index(drop=True)
    shown[["x", "y"]] = project(vectors[drawn])
    return shown.assign(text=shown["text"].str[:_MAX_TEXT])[EMBEDDING_MAP_COLUMNS]


def project(vectors: np.ndarray) -> np.ndarray:
    """Project unit vectors ``[n, d]`` to ``[n, 2]`` with scikit-learn's t-SNE, which starts from PCA.

    Near points were near before; the distance between groups means nothing. Few vectors get PCA alone.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(vectors) < _MIN_TSNE:
        components = max(0, min(2, len(vectors) - 1, vectors.shape[1]))
        flat = PCA(components).fit_transform(vectors) if components else vectors[:, :0]
        return np.pad(flat, ((0, 0), (0, 2 - components)))
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    # Half of the default iterations take half of the time and are enough for a picture.
    return TSNE(init="pca", perplexity=perplexity, max_iter=500, random_state=0).fit_transform(vectors)


def _query_texts(task: Task, frame: pd.DataFrame) -> list[str]:
    return ["\n".join(fields[name] for name in task.query_fields) for fields in map(json.loads, frame["fields"])]


def _add_estimates(estimates: list[dict[str, Any]]) -> dict[str, Any]:
    """The sums of estimates, each with a lowest and a highest value, as columns; dollars are None without a price."""
    columns: dict[str, Any] = {}
    for name, nothing in (("requests", [0, 0]), ("dollars", [0.0, 0.0])):
        ranges = [nothing, *(estimate[name] for estimate in estimates)]
        sums = [None, None] if None in ranges else [sum(values) for values in zip(*ranges, strict=True)]
        columns[f"estimated_{name}_low"], columns[f"estimated_{name}_high"] = sums
    return columns
