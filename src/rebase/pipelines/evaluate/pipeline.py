"""Evaluate: the student and the expert on the task's evaluation set."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines import prepare
from rebase.pipelines.evaluate.nodes import predict, score_predictions
from rebase.reporting.plots import plot_scores


def create_pipeline() -> Pipeline:
    """``evaluation_items``, ``student`` and ``adapter`` to ``predictions`` and ``scores``."""
    return prepare.create_pipeline() + Pipeline(
        [
            Node(
                predict,
                ["task", "evaluation_items", "student", "adapter", "params:evaluate"],
                ["generations", "evaluate_summary"],
                name="predict",
                tags="gpu",
            ),
            Node(
                score_predictions,
                ["task", "generations", "params:evaluate"],
                ["predictions", "scores"],
                name="score_predictions",
            ),
            Node(plot_scores, "scores", "scores_plot", name="plot_scores", tags="report"),
        ]
    )
