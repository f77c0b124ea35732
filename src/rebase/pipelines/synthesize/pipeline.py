"""Synthesize: the baseline of examples written from the instruction and the examples alone."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines import prepare
from rebase.pipelines.synthesize.nodes import synthesize_examples


def create_pipeline() -> Pipeline:
    """As many examples as ``transform``'s budget buys: ``synthesized_examples`` and what was rejected."""
    given = ["task", "transform_summary", "evaluation_items", "teacher", "synthesize_prompt", "transform_prompt"]
    parameters = ["params:synthesize", "params:contamination"]
    return prepare.create_pipeline() + Pipeline(
        [
            Node(
                synthesize_examples,
                [*given, *parameters],
                ["synthesized_examples", "synthesized_rejected", "synthesize_summary"],
                name="synthesize_examples",
            )
        ]
    )
