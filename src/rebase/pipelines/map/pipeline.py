"""Map: people's labels in retrieved datasets become examples, for one request a dataset."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines import prepare
from rebase.pipelines.map.nodes import map_datasets


def create_pipeline() -> Pipeline:
    """``retrieved`` and ``rows`` to ``mappings`` and ``mapped_examples``; nothing in the mode ``rewrite``."""
    inputs = ["task", "retrieved", "rows", "cards", "evaluation_items", "teacher", "map_prompt", "distil_prompt"]
    inputs += ["params:transform.mode", "params:map", "params:distil", "params:retrieve", "params:contamination"]
    outputs = ["mappings", "mapped_examples", "mapped_rejected", "map_summary"]
    return prepare.create_pipeline() + Pipeline(
        [Node(map_datasets, inputs, outputs, name="map_datasets")],
        namespace="teacher_side.map",
        prefix_datasets_with_namespace=False,
    )
