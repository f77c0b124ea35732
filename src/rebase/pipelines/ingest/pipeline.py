"""Ingest: raw datasets to rows."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines.ingest.nodes import plan_ingest, summarize_ingest


def create_pipeline() -> Pipeline:
    """``sources`` to ``rows``, ``cards`` and ``ingest_rejected``."""
    return Pipeline(
        [
            Node(plan_ingest, ["sources", "params:ingest"], "rows", name="plan_ingest"),
            Node(summarize_ingest, "rows", ["cards", "ingest_rejected", "ingest_summary"], name="summarize_ingest"),
        ],
        namespace="datastore.ingest",
        prefix_datasets_with_namespace=False,
    )
