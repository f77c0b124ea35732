"""Ingest: raw datasets to rows."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines.ingest.nodes import plan_ingest, summarise_ingest


def create_pipeline() -> Pipeline:
    """``sources`` to ``rows``, ``cards`` and what was refused."""
    return Pipeline(
        [
            Node(plan_ingest, ["sources", "params:ingest"], "rows", name="plan_ingest"),
            Node(
                summarise_ingest,
                "rows",
                ["cards", "ingest_refused", "ingest_summary"],
                name="summarise_ingest",
            ),
        ]
    )
