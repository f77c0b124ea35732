"""Distil: inputs, the task's own or those of the examples, labeled by the teacher."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines import prepare
from rebase.pipelines.distil.nodes import distil_inputs


def create_pipeline() -> Pipeline:
    """Map ``unlabeled_inputs``, or ``examples`` if there are none, to ``distilled_examples`` and rejected inputs."""
    inputs = ["task", "unlabeled_inputs", "examples", "evaluation_items", "teacher", "distil_prompt"]
    inputs += ["params:distil", "params:contamination"]
    outputs = ["distilled_examples", "distilled_rejected", "distil_summary"]
    return prepare.create_pipeline() + Pipeline([Node(distil_inputs, inputs, outputs, name="distil_inputs")])
