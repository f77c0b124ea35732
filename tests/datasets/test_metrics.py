import pytest

from rebase.datasets import MetricsDataset


@pytest.fixture
def preview(tmp_path):
    def shown(metrics):
        dataset = MetricsDataset(filepath=str(tmp_path / "scores.json"))
        dataset.save(metrics)
        table = dataset.preview()
        return [table["columns"], *table["data"]]

    return shown


def test_every_metric_is_a_line_however_deep_it_is(preview):
    f1 = {"value": 40.5, "low": 30, "high": 50}
    assert preview({"task": "t", "systems": {"student": {"f1": f1, "seen": ["a", "ä"]}}}) == [
        ["metric", "value", "low", "high"],
        ["task", "t", "", ""],
        ["systems · student · f1", 40.5, 30.0, 50.0],
        ["systems · student · seen", '["a", "ä"]', "", ""],
    ]


def test_metrics_without_groups_and_none_at_all(preview):
    assert preview({"n": 3, "share": None}) == [["metric", "value"], ["n", 3.0], ["share", ""]]
    assert preview({}) == [[]]
