"""Diversity: how much the examples of a training set differ from one another."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines.diversity.nodes import measure_diversity


def create_pipeline() -> Pipeline:
    """``reasoned_examples`` to ``diversity``."""
    given = ["task", "reasoned_examples", "encoder"]
    return Pipeline([Node(measure_diversity, given, "diversity", name="measure_diversity")])
