"""Transform: retrieved rows become training examples."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines import prepare
from rebase.pipelines.transform.nodes import transform_rows


def create_pipeline(*, with_mapped: bool = True) -> Pipeline:
    """``retrieved`` and ``mapped_examples`` to ``examples`` and ``examples_rejected``."""
    inputs = ["task", "retrieved", "evaluation_items", "teacher", "transform_prompt"]
    inputs += ["params:transform", "params:contamination", *["mapped_examples"] * with_mapped]
    outputs = ["examples", "examples_rejected", "transform_summary"]
    return prepare.create_pipeline() + Pipeline(
        [Node(transform_rows, inputs, outputs, name="transform_rows")],
        namespace="teacher_side.transform",
        prefix_datasets_with_namespace=False,
    )
