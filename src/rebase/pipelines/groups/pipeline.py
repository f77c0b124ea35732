"""Groups: means over the tasks of a benchmark."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines.groups.nodes import average_groups


def create_pipeline() -> Pipeline:
    """The predictions of every task's last run to ``group_scores``."""
    given = ["all_tasks", "all_predictions", "params:evaluate"]
    return Pipeline([Node(average_groups, given, "group_scores", name="average_groups")])
