"""Estimate: what the teacher will cost, before any request is sent."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines import embed, index, ingest, retrieve
from rebase.pipelines.estimate.nodes import estimate_cost, estimate_rewritten


def create_pipeline(*, with_mapped: bool = True) -> Pipeline:
    """Run ingest, embed, index and retrieve, because the requests depend on the rows, and make ``estimate``."""
    function = estimate_cost if with_mapped else estimate_rewritten
    inputs = ["task", "retrieved", "teacher", "transform_prompt", "cot_prompt", "map_prompt", "distil_prompt"]
    inputs += ["params:transform", "params:cot", "params:map", "params:distil"]
    estimate = Pipeline(
        [Node(function, inputs, "estimate", name="estimate_cost")],
        namespace="teacher_side",
        prefix_datasets_with_namespace=False,
    )
    return sum((stage.create_pipeline() for stage in (ingest, embed, index, retrieve)), estimate)
