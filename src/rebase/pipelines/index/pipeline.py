"""Index: one searchable whole over all vectors."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines.index.nodes import plan_forest, plan_index, summarize_index


def create_pipeline() -> Pipeline:
    """``vectors`` to ``index`` and ``forest``."""
    return Pipeline(
        [
            Node(plan_index, ["vectors", "params:index"], "index", name="plan_index"),
            Node(plan_forest, ["index", "vectors", "params:index"], "forest", name="plan_forest"),
            Node(summarize_index, ["index", "forest", "params:index"], "index_summary", name="summarize_index"),
        ]
    )
