"""Evaluate: answers and scores of the student and the expert, and of the teacher."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines import prepare
from rebase.pipelines.evaluate.nodes import collect_item_scores, predict, predict_teacher, score_run
from rebase.reporting.plots import plot_scores
from rebase.tasks.scoring import score_predictions


def create_pipeline() -> Pipeline:
    """Map ``evaluation_items``, ``student`` and ``adapter`` to ``predictions`` and ``scores``."""
    inputs = ["task", "evaluation_items", "student", "adapter", "params:evaluate"]
    return prepare.create_pipeline() + Pipeline(
        [
            Node(predict, inputs, ["generations", "evaluate_summary"], name="predict", tags="gpu"),
            Node(
                score_run,
                ["task", "generations", "params:evaluate", "run_version"],
                ["predictions", "scores"],
                name="score_predictions",
            ),
            Node(collect_item_scores, ["task", "predictions"], "item_scores", name="collect_item_scores"),
            Node(plot_scores, "scores", "scores_plot", name="plot_scores", tags="report"),
        ],
        namespace="student_side.evaluate",
        prefix_datasets_with_namespace=False,
    )


def create_teacher_pipeline() -> Pipeline:
    """Map ``evaluation_items`` and ``teacher`` to ``teacher_predictions`` and ``teacher_scores``."""
    inputs = ["task", "evaluation_items", "teacher", "distil_prompt", "params:evaluate"]
    answers = Node(predict_teacher, inputs, ["teacher_generations", "teacher_summary"], name="predict_teacher")
    scored, outputs = ["task", "teacher_generations", "params:evaluate"], ["teacher_predictions", "teacher_scores"]
    return prepare.create_pipeline() + Pipeline(
        [answers, Node(score_predictions, scored, outputs, name="score_teacher")]
    )
