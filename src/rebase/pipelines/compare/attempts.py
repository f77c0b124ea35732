"""A failure in one training set ends that set, not the comparison."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

import pandas as pd
from kedro.pipeline import Node, Pipeline

from rebase.errors import RebaseError
from rebase.records import Untrained, summarize_stage

logger = logging.getLogger(__name__)

#: The reason of the failure, in records that replace outputs.
LEFT_OUT = "left_out"

_EXAMPLES = pd.DataFrame(columns=["example_id", "query", "answer", "dataset", "license", "teacher"])
_NO_COUNTS: dict[str, Any] = {"kept": 0, "rejected": {}, "seconds": 0}


def tolerate(pipeline: Pipeline, replacements: dict[str, Callable[[str], Any]]) -> Pipeline:
    """The pipeline with nodes that return a replacement, made from the error's message, if they raise a RebaseError.

    ``replacements`` has a function for each node name; other nodes stay as they are.
    """
    return Pipeline(
        [_tolerant(node, replacements[node.name]) if node.name in replacements else node for node in pipeline.nodes]
    )


def no_examples(stage: str) -> Callable[[str], Any]:
    """Replacement for a stage's examples, rejected rows and summary. The requests it made are not known."""
    usage = {"used": None, "used_dollars": None}
    return lambda reason: (
        _EXAMPLES,
        pd.DataFrame(columns=["row_id", "reason"]),
        summarize_stage(stage, **_NO_COUNTS, usage=usage, left_out=reason),
    )


def no_training_set(reason: str) -> pd.DataFrame:
    """Replacement for a training set."""
    return pd.DataFrame(columns=["example_id", "prompt", "completion"], dtype="object")


def no_preflight(reason: str) -> dict[str, Any]:
    """Replacement for the preflight record."""
    return {LEFT_OUT: reason}


def no_adapter(reason: str) -> tuple[Untrained, pd.DataFrame, dict[str, Any]]:
    """Replacement for an adapter, its training log and the summary of its training."""
    log = pd.DataFrame(columns=["step", "epoch", "loss", "validation_loss"], dtype="float64")
    return Untrained(reason), log, summarize_stage("train", **_NO_COUNTS, left_out=reason)


def no_curve(reason: str) -> pd.DataFrame:
    """Replacement for the runs of a learning curve."""
    return pd.DataFrame(columns=["examples", "seed", "folder", "base_model"])


def _tolerant(node: Node, replace: Callable[[str], Any]) -> Node:
    """The node with a function that does not raise RebaseError; its inputs must be positional."""
    function = node.func

    @wraps(function)
    def attempt(*inputs: Any) -> Any:
        # An input that was left out leaves this out too, for the same reason.
        reasons = [value[LEFT_OUT] for value in inputs if isinstance(value, dict) and LEFT_OUT in value]
        if reasons:
            return replace(reasons[0])
        try:
            return function(*inputs)
        except RebaseError as error:
            logger.warning("compare continues without this training set: %s", error)
            return replace(str(error))

    outputs = node.outputs if len(node.outputs) > 1 else node.outputs[0]
    return Node(attempt, node.inputs, outputs, name=node.name, tags=node.tags)
