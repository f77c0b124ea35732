"""Chain of thought: the rationale that leads to each answer."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines.cot.nodes import reason_examples


def create_pipeline() -> Pipeline:
    """Map ``examples`` to ``reasoned_examples`` and ``reasoning_rejected``."""
    inputs = ["task", "examples", "retrieved", "teacher", "cot_prompt", "params:train.target", "params:cot"]
    outputs = ["reasoned_examples", "reasoning_rejected", "cot_summary"]
    return Pipeline(
        [Node(reason_examples, inputs, outputs, name="reason_examples")],
        namespace="teacher_side.cot",
        prefix_datasets_with_namespace=False,
    )
