"""Retrieve: the rows that suit the task best, screened."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines import prepare
from rebase.pipelines.retrieve.nodes import retrieve_rows
from rebase.reporting.plots import plot_sources


def create_pipeline() -> Pipeline:
    """``index`` and ``task`` to ``retrieved`` and ``retrieval_rejected``."""
    inputs = ["task", "encoder", "index", "annoy_index", "vectors", "rows", "cards", "evaluation_items"]
    return prepare.create_pipeline() + Pipeline(
        [
            Node(
                retrieve_rows,
                [*inputs, "params:retrieve", "params:contamination"],
                ["retrieved", "retrieval_rejected", "retrieve_summary"],
                name="retrieve_rows",
            ),
            Node(plot_sources, "retrieved", "sources_plot", name="plot_sources"),
        ],
        namespace="retrieve",
        prefix_datasets_with_namespace=False,
    )
