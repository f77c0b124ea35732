"""Mix: one training set of examples of several origins."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines import prepare
from rebase.pipelines.mix.nodes import mix_examples


def create_pipeline() -> Pipeline:
    """Map the tables of examples to ``mixed_examples``."""
    tables = ["reasoned_examples", "synthesized_examples", "distilled_examples", "real_items", "evaluation_items"]
    inputs = ["task", *tables, "params:mix", "params:contamination"]
    mix = Node(mix_examples, inputs, ["mixed_examples", "mix_summary"], name="mix_examples")
    return prepare.create_pipeline() + Pipeline([mix])
