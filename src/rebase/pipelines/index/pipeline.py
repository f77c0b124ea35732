"""Index: one searchable whole over all vectors."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines.index.nodes import plan_forest, plan_index, summarise_index


def create_pipeline() -> Pipeline:
    """``vectors`` to ``index`` and ``forest``."""
    return Pipeline(
        [
            Node(plan_index, ["vectors", "params:index"], "index", name="plan_index"),
            Node(plan_forest, ["index", "vectors", "params:index"], "forest", name="plan_forest"),
            Node(summarise_index, ["index", "forest", "params:index"], "index_summary", name="summarise_index"),
        ]
    )
