"""Mix: one training set of examples of several origins."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines import prepare
from rebase.pipelines.mix.nodes import mix_examples


def create_pipeline() -> Pipeline:
    """The task's sets of examples, those that were made before, to ``mixed_examples``."""
    given = ["task", "example_sets", "real_items", "evaluation_items"]
    parameters = ["params:mix", "params:retrieve.contamination_ngram"]
    made = ["mixed_examples", "mix_summary"]
    return prepare.create_pipeline() + Pipeline([Node(mix_examples, [*given, *parameters], made, name="mix_examples")])
