"""Embed: every distinct cell value and description as a vector."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines.embed.nodes import plan_embed, summarize_embed


def create_pipeline() -> Pipeline:
    """``rows`` to ``vectors``."""
    return Pipeline(
        [
            Node(plan_embed, ["rows", "encoder", "params:embed"], "vectors", name="plan_embed"),
            Node(summarize_embed, "vectors", "embed_summary", name="summarize_embed"),
        ],
        namespace="datastore.embed",
        prefix_datasets_with_namespace=False,
    )
