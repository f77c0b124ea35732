"""Synthesize: the baseline of examples written from the instruction and the task's examples alone."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines import prepare
from rebase.pipelines.synthesize.nodes import synthesize_examples


def create_pipeline() -> Pipeline:
    """Make ``synthesized_examples``, with as many requests as ``transform`` used, and ``synthesized_rejected``."""
    inputs = ["task", "transform_summary", "evaluation_items", "teacher", "synthesize_prompt", "transform_prompt"]
    inputs += ["params:synthesize", "params:contamination"]
    outputs = ["synthesized_examples", "synthesized_rejected", "synthesize_summary"]
    node = Node(synthesize_examples, inputs, outputs, name="synthesize_examples")
    return prepare.create_pipeline() + Pipeline([node])
