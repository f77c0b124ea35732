"""Students: train and evaluate several students on one set of examples."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines import prepare
from rebase.pipelines.students.nodes import predict_students, score_students, select_examples, train_students
from rebase.reporting.plots import plot_scores

#: The tables that ``students.examples`` can name.
TABLES = ("examples", "reasoned_examples", "synthesized_examples", "distilled_examples", "mixed_examples")


def create_pipeline() -> Pipeline:
    """From ``students`` and a table of examples to ``students_adapters``, ``students_scores``, ``students_table``."""
    return prepare.create_pipeline() + Pipeline(
        [
            Node(
                select_examples,
                {"parameters": "params:students", **{name: name for name in TABLES}},
                "selected_examples",
                name="select_examples",
            ),
            Node(
                train_students,
                ["task", "selected_examples", "students", "params:train", "params:train.target"],
                ["students_adapters", "students_training_log", "students_train_summary"],
                name="train_students",
                tags="gpu",
            ),
            Node(
                predict_students,
                [
                    "task",
                    "evaluation_items",
                    "students",
                    "students_adapters",
                    "students_train_summary",
                    "params:evaluate",
                ],
                ["students_generations", "students_summary"],
                name="predict_students",
                tags="gpu",
            ),
            Node(
                score_students,
                ["task", "students_generations", "students_train_summary", "params:evaluate"],
                ["students_predictions", "students_scores", "students_table"],
                name="score_students",
            ),
            Node(plot_scores, "students_scores", "students_plot", name="plot_students", tags="report"),
        ]
    )
