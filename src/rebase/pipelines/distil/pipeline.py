"""Distil: the task's own inputs, labelled by the teacher."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines.distil.nodes import label_inputs


def create_pipeline() -> Pipeline:
    """``unlabelled`` to ``labelled_examples``, which train takes as they are, and what was refused.

    In a run that makes ``examples`` too, map ``unlabelled`` to them.
    """
    given = ["task", "unlabelled", "evaluation_set", "teacher", "label_prompt"]
    return Pipeline(
        [
            Node(
                label_inputs,
                [*given, "params:distil", "params:retrieve.contamination_ngram"],
                ["labelled_examples", "labelled_refused", "distil_summary"],
                name="label_inputs",
            )
        ]
    )
