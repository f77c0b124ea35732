"""Prepare: read and validate the task's evaluation set, once a run."""

from kedro.pipeline import Node, Pipeline

from rebase.tasks.evaluation_items import make_evaluation_items


def create_pipeline() -> Pipeline:
    """Map ``evaluation_rows`` to ``evaluation_items``; pipelines that read these include this one."""
    inputs = ["task", "evaluation_rows"]
    return Pipeline([Node(make_evaluation_items, inputs, "evaluation_items", name="prepare_evaluation_items")])
