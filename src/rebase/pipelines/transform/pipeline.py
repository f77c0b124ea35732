"""Transform: retrieved rows become training examples."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines import prepare
from rebase.pipelines.transform.nodes import transform_rows


def create_pipeline() -> Pipeline:
    """``retrieved`` to ``examples`` and what was rejected."""
    given = ["task", "retrieved", "evaluation_items", "teacher", "transform_prompt", "params:transform"]
    return prepare.create_pipeline() + Pipeline(
        [
            Node(
                transform_rows,
                [*given, "params:contamination"],
                ["examples", "examples_rejected", "transform_summary"],
                name="transform_rows",
            )
        ]
    )
