"""The whole method: the eight stages, composed."""

from kedro.pipeline import Pipeline

from rebase.pipelines import (
    cot,
    embed,
    estimate,
    evaluate,
    index,
    ingest,
    report,
    retrieve,
    train,
    transform,
)


def create_pipeline() -> Pipeline:
    """From ``sources`` and ``task`` to ``adapter``, ``scores`` and ``report``."""
    stages = (ingest, embed, index, retrieve, estimate, transform, cot, train, evaluate, report)
    return sum((stage.create_pipeline() for stage in stages), Pipeline([]))
