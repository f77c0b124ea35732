"""The whole method, composed."""

from typing import Any

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
from rebase.pipelines import map as mapping

#: The way from raw datasets to adapter, scores and report: what kedro-viz shows between closed groups of nodes.
MAIN_DATASETS = frozenset(
    {
        "sources", "rows", "vectors", "index", "task", "evaluation_items", "retrieved", "teacher", "examples",
        "reasoned_examples", "student", "adapter", "generations", "scores", "report",
    }
)  # fmt: skip


class Overview(Pipeline):
    """A pipeline whose groups (namespaces) have few datasets between them in kedro-viz, until someone opens them.

    kedro-viz draws the inputs and outputs that a group of nodes and the other nodes report. Kedro never runs this
    class: a run adds and filters pipelines, which returns plain ones.
    """

    def only_nodes_with_namespaces(self, node_namespaces: list[str]) -> Pipeline:
        return _Part(super().only_nodes_with_namespaces(node_namespaces).nodes)

    def __sub__(self, other: Any) -> Pipeline:
        return _Part((Pipeline(self.nodes) - Pipeline(other.nodes)).nodes)


class _Part(Pipeline):
    """A part of a pipeline that reports its main inputs and outputs."""

    def inputs(self) -> set[str]:
        return super().inputs() & MAIN_DATASETS

    def outputs(self) -> set[str]:
        # `evaluate` reads the adapter in the group of `train`.
        return (super().outputs() | self.all_outputs() & {"adapter"}) & MAIN_DATASETS


def create_pipeline() -> Pipeline:
    """From ``sources`` and ``task`` to ``adapter``, ``scores`` and ``report``."""
    stages = (ingest, embed, index, retrieve, estimate, mapping, transform, cot, train, evaluate, report)
    return Overview(sum((stage.create_pipeline() for stage in stages), Pipeline([])).nodes)
