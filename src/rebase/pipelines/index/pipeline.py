"""Index: all vectors in searchable segments."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines.index.nodes import plan_annoy_index, plan_index, summarize_index


def create_pipeline() -> Pipeline:
    """``vectors`` to ``index`` and ``annoy_index``."""
    return Pipeline(
        [
            Node(plan_index, "vectors", "index", name="plan_index"),
            Node(plan_annoy_index, ["index", "vectors", "params:index"], "annoy_index", name="plan_annoy_index"),
            Node(summarize_index, ["index", "annoy_index", "params:index"], "index_summary", name="summarize_index"),
        ],
        namespace="datastore.index",
        prefix_datasets_with_namespace=False,
    )
