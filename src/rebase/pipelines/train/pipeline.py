"""Train: the student becomes the expert."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines.train.nodes import format_training_set, train_student


def create_pipeline() -> Pipeline:
    """``reasoned_examples`` to ``training_set`` and ``adapter``."""
    return Pipeline(
        [
            Node(
                format_training_set,
                ["task", "reasoned_examples", "student", "params:train"],
                "training_set",
                name="format_training_set",
            ),
            Node(
                train_student,
                ["task", "training_set", "reasoned_examples", "student", "params:train"],
                ["adapter", "training_log", "train_summary"],
                name="train_student",
                tags="gpu",
            ),
        ]
    )
