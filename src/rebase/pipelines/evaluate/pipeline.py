"""Evaluate: answers and scores of the student and the expert, and of the teacher."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines import prepare
from rebase.pipelines.evaluate.nodes import collect_item_scores, predict, predict_teacher
from rebase.reporting.plots import plot_scores
from rebase.tasks.scoring import score_predictions


def create_pipeline() -> Pipeline:
    """Map ``evaluation_items``, ``student`` and ``adapter`` to ``predictions`` and ``scores``."""
    inputs = ["task", "evaluation_items", "student", "adapter", "params:evaluate"]
    return prepare.create_pipeline() + Pipeline(
        [
            Node(predict, inputs, ["generations", "evaluate_summary"], name="predict", tags="gpu"),
            _score("score_predictions"),
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
    return prepare.create_pipeline() + Pipeline([answers, _score("score_teacher", "teacher_")])


def _score(name: str, prefix: str = "") -> Node:
    outputs = [f"{prefix}predictions", f"{prefix}scores"]
    return Node(score_predictions, ["task", f"{prefix}generations", "params:evaluate"], outputs, name=name)
