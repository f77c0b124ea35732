"""Evaluate: the student and the expert on the task's evaluation set, and the run's report."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines.evaluate.nodes import predict, score_predictions
from rebase.plots import plot_scores
from rebase.report import write_report


def create_pipeline() -> Pipeline:
    """``evaluation_set``, ``student`` and ``adapter`` to ``predictions``, ``scores`` and ``report``."""
    return Pipeline(
        [
            Node(
                predict,
                ["task", "evaluation_set", "student", "adapter", "params:evaluate"],
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
            Node(
                write_report,
                [
                    "task",
                    "scores",
                    "predictions",
                    "retrieved",
                    "reasoned_examples",
                    "ingest_summary",
                    "embed_summary",
                    "index_summary",
                    "retrieve_summary",
                    "transform_summary",
                    "cot_summary",
                    "train_summary",
                    "evaluate_summary",
                ],
                "report",
                name="write_report",
                tags="report",
            ),
        ]
    )
