"""Pilot: the teacher's responses to a few rows, and what a full run will cost."""

from kedro.pipeline import Node, Pipeline

from rebase.generation.pilot import estimate_full_run
from rebase.pipelines import estimate
from rebase.pipelines.pilot.nodes import try_rows
from rebase.reporting.pilot import write_pilot


def create_pipeline() -> Pipeline:
    """Run the pipeline estimate, and make ``pilot``, ``pilot_estimate`` and ``pilot_page``."""
    inputs = ["task", "retrieved", "evaluation_items", "teacher", "transform_prompt"]
    inputs += ["params:transform", "params:contamination", "params:pilot"]
    pages = ["task", "pilot", "pilot_summary", "pilot_estimate"]
    return estimate.create_pipeline() + Pipeline(
        [
            Node(try_rows, inputs, ["pilot", "pilot_summary"], name="try_rows"),
            Node(
                estimate_full_run,
                ["pilot", "estimate", "teacher", "params:transform"],
                "pilot_estimate",
                name="estimate_full_run",
            ),
            Node(write_pilot, pages, "pilot_page", name="write_pilot", tags="report"),
        ],
        namespace="teacher_side",
        prefix_datasets_with_namespace=False,
    )
