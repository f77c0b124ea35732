"""Index: one searchable whole over all vectors."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines.index.nodes import build_index, plant_forest


def create_pipeline() -> Pipeline:
    """``vectors`` to ``index`` and ``forest``."""
    return Pipeline(
        [
            Node(build_index, "vectors", "index", name="build_index"),
            Node(plant_forest, ["index", "params:index"], ["forest", "index_summary"], name="plant_forest"),
        ]
    )
