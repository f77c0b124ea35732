"""Usage: what the teacher was asked and paid, beside what had been estimated."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines.usage.nodes import compare_usage


def create_pipeline() -> Pipeline:
    """The summaries of ``transform`` and ``cot`` beside the ``estimate``."""
    given = ["estimate", "transform_summary", "cot_summary"]
    return Pipeline([Node(compare_usage, given, "teacher_usage", name="compare_usage")])
