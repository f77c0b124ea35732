"""What cannot be made for one training set stops that set, not the comparison."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

import pandas as pd
from kedro.pipeline import Pipeline

from rebase.errors import RebaseError
from rebase.records import Untrained

logger = logging.getLogger(__name__)

#: Why a set is left out, in the records that stand for what could not be made.
LEFT_OUT = "left_out"

_NO_LOG = pd.DataFrame(columns=["step", "epoch", "loss", "validation_loss"], dtype="float64")


def tolerate(pipeline: Pipeline, stands_for: dict[str, Callable[[str], Any]]) -> Pipeline:
    """The pipeline, whose nodes give ``stands_for`` of the error's words where they raise a RebaseError.

    ``stands_for`` is by node; a node without one raises as before.
    """
    return Pipeline(
        [
            node._copy(func=_attempt(node.func, stands_for[node.name])) if node.name in stands_for else node
            for node in pipeline.nodes
        ]
    )


def no_examples(stage: str) -> Callable[[str], Any]:
    """What stands for a stage's examples, what it rejected, and its summary. What it asked is not known."""
    return lambda reason: (
        pd.DataFrame(columns=["example_id", "query", "answer", "dataset", "license", "teacher"]),
        pd.DataFrame(columns=["row_id", "reason"]),
        {
            "stage": stage, "in": 0, "kept": 0, "rejected": {}, "usage": {"used": None, "used_dollars": None},
            LEFT_OUT: reason,
        },
    )  # fmt: skip


def no_training_set(reason: str) -> pd.DataFrame:
    """What stands for a training set."""
    return pd.DataFrame(columns=["example_id", "prompt", "completion"], dtype="object")


def no_preflight(reason: str) -> dict[str, Any]:
    """What stands for the look before the first step."""
    return {LEFT_OUT: reason}


def no_adapter(reason: str) -> tuple[Untrained, pd.DataFrame, dict[str, Any]]:
    """What stands for the adapter, its log and the summary of its training."""
    return Untrained(reason), _NO_LOG, {"stage": "train", "in": 0, "kept": 0, "rejected": {}, LEFT_OUT: reason}


def no_curve(reason: str) -> pd.DataFrame:
    """What stands for the runs of a learning curve."""
    return pd.DataFrame(columns=["examples", "seed", "folder", "base_model"])


def _attempt(function: Callable[..., Any], stands_for: Callable[[str], Any]) -> Callable[..., Any]:
    @wraps(function)
    def attempt(*given: Any) -> Any:
        # What could not be looked at before is not trained either, and for the same reason.
        reasons = [known[LEFT_OUT] for known in given if isinstance(known, dict) and LEFT_OUT in known]
        if reasons:
            return stands_for(reasons[0])
        try:
            return function(*given)
        except RebaseError as error:
            logger.warning("compare goes on without this: %s", error)
            return stands_for(str(error))

    return attempt
