"""The composed pipeline: few datasets between closed groups in kedro-viz, and all of them in a run."""

import pytest
from kedro.pipeline import Pipeline

from rebase.pipelines.rebase import create_pipeline
from rebase.pipelines.rebase.pipeline import MAIN_DATASETS

WHOLE = create_pipeline()


@pytest.mark.parametrize("group", ["datastore", "retrieve", "teacher_side", "student_side"])
def test_a_group_and_the_other_nodes_report_main_datasets_alone(group: str) -> None:
    part = WHOLE.only_nodes_with_namespaces([group])
    rest = WHOLE - part
    assert {node.name for node in part.nodes + rest.nodes} == {node.name for node in WHOLE.nodes}
    for shown in (part, rest):
        run = Pipeline(shown.nodes)
        assert shown.inputs() == run.inputs() & MAIN_DATASETS
        assert run.outputs() & MAIN_DATASETS <= shown.outputs() <= MAIN_DATASETS
    assert ("adapter" in part.outputs()) == (group == "student_side")


def test_a_run_has_all_inputs_and_outputs() -> None:
    for run in (WHOLE + WHOLE, WHOLE.filter(node_namespaces=["student_side"]), WHOLE.only_nodes_with_tags("gpu")):
        assert type(run) is Pipeline
        assert "params:train" in run.inputs()
        assert "train_summary" in run.outputs() | run.all_outputs()
