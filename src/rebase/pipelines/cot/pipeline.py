"""Chain of thought: the reasoning that leads to each answer, kept where it does."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines.cot.nodes import reason_examples


def create_pipeline() -> Pipeline:
    """``examples`` to ``reasoned_examples`` and what was rejected."""
    return Pipeline(
        [
            Node(
                reason_examples,
                ["task", "examples", "retrieved", "teacher", "cot_prompt", "params:cot"],
                ["reasoned_examples", "reasoning_rejected", "cot_summary"],
                name="reason_examples",
            )
        ]
    )
