"""A failure in one training set ends that set, not the comparison."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import pandas as pd
from kedro.pipeline import Node, Pipeline

from rebase.errors import RebaseError, StageError
from rebase.records import (
    CURVE_COLUMNS,
    DISTILLED_COLUMNS,
    EXAMPLE_COLUMNS,
    MAPPING_COLUMNS,
    REASONED_COLUMNS,
    REJECTED_COLUMNS,
    TRAINING_COLUMNS,
    TRAINING_LOG_COLUMNS,
    Untrained,
    summarize_stage,
)

logger = logging.getLogger(__name__)

#: The reason of the failure, in records that replace outputs.
LEFT_OUT = "left_out"


def no_examples(stage: str, columns: Sequence[str] = EXAMPLE_COLUMNS) -> Callable[[str], Any]:
    """Replacement for a stage's examples, rejected rows and summary. The requests it made are not known."""
    usage = {"used": None, "used_dollars": None}
    return lambda reason: (
        _no_examples(reason, columns),
        _table(REJECTED_COLUMNS),
        summarize_stage(stage, kept=0, rejected={}, seconds=0, usage=usage, left_out=reason),
    )


def _no_examples(reason: str, columns: Sequence[str]) -> pd.DataFrame:
    table = _table(columns)
    table.attrs = {LEFT_OUT: reason}
    return table


def no_adapter(reason: str) -> tuple[Untrained, pd.DataFrame, dict[str, Any]]:
    """Replacement for an adapter, its training log and the summary of its training."""
    log = _table(TRAINING_LOG_COLUMNS).astype("float64")
    return Untrained(reason), log, summarize_stage("train", kept=0, rejected={}, seconds=0, left_out=reason)


def _table(columns: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(columns=list(columns), dtype="object")


#: What replaces a node's outputs, made from the error's message; by node name.
REPLACEMENTS: dict[str, Callable[[str], Any]] = {
    "map_datasets": lambda reason: (_table(MAPPING_COLUMNS), *no_examples("map")(reason)),
    "add_mapped": lambda reason: (_no_examples(reason, [*EXAMPLE_COLUMNS, "origin"]),) * 3,
    "synthesize_examples": no_examples("synthesize"),
    "distil_inputs": no_examples("distil", DISTILLED_COLUMNS),
    "reason_examples": no_examples("cot", REASONED_COLUMNS),
    "format_training_set": lambda reason: _no_examples(reason, TRAINING_COLUMNS),
    "inspect_training": lambda reason: {LEFT_OUT: reason},
    "train_student": no_adapter,
    "learn_curve": lambda reason: _table(CURVE_COLUMNS),
}


def tolerate(pipeline: Pipeline, replacements: Mapping[str, Callable[[str], Any]] = REPLACEMENTS) -> Pipeline:
    """The pipeline whose nodes return their replacement if they raise a RebaseError; others stay as they are."""
    return Pipeline(
        [
            _tolerant(node, replacements[node.short_name]) if node.short_name in replacements else node
            for node in pipeline.nodes
        ]
    )


def _tolerant(node: Node, replace: Callable[[str], Any]) -> Node:
    """The node with a function that does not raise RebaseError; its inputs must be positional."""
    function = node.func

    @wraps(function)
    def attempt(*inputs: Any) -> Any:
        # An input that was left out leaves this out too, for the same reason.
        details = [getattr(value, "attrs", value) for value in inputs]
        reasons = [value[LEFT_OUT] for value in details if isinstance(value, dict) and LEFT_OUT in value]
        if reasons:
            return replace(reasons[0])
        try:
            return function(*inputs)
        except RebaseError as error:
            logger.warning("compare continues without this training set: %s", error)
            outputs = replace(str(error))
            if not isinstance(error, StageError):
                return outputs
            tables = map(error.table, node.outputs)
            return tuple(output if table is None else table for table, output in zip(tables, outputs, strict=True))

    outputs = node.outputs if len(node.outputs) > 1 else node.outputs[0]
    return Node(attempt, node.inputs, outputs, name=node.short_name, tags=node.tags, namespace=node.namespace)
