"""Evaluate the teacher, or any model that speaks its protocol, on the task's evaluation set."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines import prepare
from rebase.pipelines.evaluate_teacher.nodes import predict_teacher, score_teacher


def create_pipeline() -> Pipeline:
    """``evaluation_items`` and ``teacher`` to ``teacher_predictions`` and ``teacher_scores``."""
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
