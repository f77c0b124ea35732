"""Distil: the task's own inputs, labeled by the teacher."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines import prepare
from rebase.pipelines.distil.nodes import distil_inputs


def create_pipeline() -> Pipeline:
    """``unlabeled_inputs`` to ``distilled_examples``, which train takes as they are, and what was rejected.

    In a run that makes ``examples`` too, map ``unlabeled_inputs`` to them.
    """
    given = ["task", "unlabeled_inputs", "evaluation_items", "teacher", "distil_prompt"]
    return prepare.create_pipeline() + Pipeline(
        [
            Node(
                distil_inputs,
                [*given, "params:distil", "params:retrieve.contamination_ngram"],
                ["distilled_examples", "distilled_rejected", "distil_summary"],
                name="distil_inputs",
            )
        ]
    )
