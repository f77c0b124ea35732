"""Train: fine-tune the student on the examples."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines.train.nodes import format_training_set, train_student
from rebase.reporting.plots import plot_loss
from rebase.student.preflight import inspect_training


def create_pipeline(namespace: str | None = "student_side.train") -> Pipeline:
    """``reasoned_examples`` to ``training_set``, ``preflight`` and ``adapter``; other namespaces are the caller's."""
    settings = ["params:train", "params:train.target"]
    return Pipeline(
        [
            Node(
                format_training_set,
                ["task", "reasoned_examples", "student", *settings],
                "training_set",
                name="format_training_set",
            ),
            Node(
                inspect_training,
                ["training_set", "student", "params:train"],
                "preflight",
                name="inspect_training",
                tags="gpu",
            ),
            Node(
                train_student,
                ["task", "training_set", "reasoned_examples", "student", "preflight", *settings],
                ["adapter", "training_log", "train_summary"],
                name="train_student",
                tags="gpu",
            ),
            Node(plot_loss, "training_log", "loss_plot", name="plot_loss", tags="report"),
        ],
        namespace=namespace,
        prefix_datasets_with_namespace=False,
    )
