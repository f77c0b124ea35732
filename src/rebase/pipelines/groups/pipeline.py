"""Groups: means over the tasks of a benchmark."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines.groups.nodes import average_groups


def create_pipeline() -> Pipeline:
    """Map the item scores of every evaluated task to ``group_scores``."""
    inputs = ["all_tasks", "item_scores", "params:evaluate"]
    return Pipeline([Node(average_groups, inputs, "group_scores", name="average_groups")])
