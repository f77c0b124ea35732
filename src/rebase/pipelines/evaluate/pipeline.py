"""Evaluate: answers and scores of the student and the expert, and of the teacher."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines import prepare
from rebase.pipelines.evaluate.nodes import collect_item_scores, predict, score_predictions
from rebase.pipelines.evaluate.teacher import predict_teacher, score_teacher
from rebase.reporting.plots import plot_scores


def create_pipeline() -> Pipeline:
    """Map ``evaluation_items``, ``student`` and ``adapter`` to ``predictions`` and ``scores``."""
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
            Node(collect_item_scores, ["task", "predictions"], "item_scores", name="collect_item_scores"),
            Node(plot_scores, "scores", "scores_plot", name="plot_scores", tags="report"),
        ]
    )


def create_teacher_pipeline() -> Pipeline:
    """Map ``evaluation_items`` and ``teacher`` to ``teacher_predictions`` and ``teacher_scores``."""
    return prepare.create_pipeline() + Pipeline(
        [
            Node(
                predict_teacher,
                ["task", "evaluation_items", "teacher", "distil_prompt", "params:evaluate"],
                ["teacher_generations", "teacher_summary"],
                name="predict_teacher",
            ),
            Node(
                score_teacher,
                ["task", "teacher_generations", "params:evaluate"],
                ["teacher_predictions", "teacher_scores"],
                name="score_teacher",
            ),
        ]
    )
