"""Estimate: what the teacher will cost, before anything is sent."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines import embed, index, ingest, retrieve
from rebase.pipelines.estimate.nodes import estimate_cost


def create_pipeline() -> Pipeline:
    """From ``sources`` to ``estimate``: rows must be retrieved to know what will be asked."""
    given = ["task", "retrieved", "teacher", "transform_prompt", "cot_prompt", "params:transform", "params:cot"]
    estimate = Pipeline([Node(estimate_cost, given, "estimate", name="estimate_cost")])
    return sum((stage.create_pipeline() for stage in (ingest, embed, index, retrieve)), estimate)
