"""Export: merge the adapter into the student."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines.export.nodes import merge_adapter


def create_pipeline() -> Pipeline:
    """``student`` and ``adapter`` to ``merged_model``: a folder that transformers and vLLM load."""
    return Pipeline([Node(merge_adapter, ["student", "adapter"], "merged_model", name="merge_adapter", tags="gpu")])
