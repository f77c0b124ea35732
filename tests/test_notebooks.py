"""The notebooks, executed in a project in which the main job has run once; what is committed holds no output."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from rebase.records import Task
from tests.pipelines.test_compare import run as compare
from tests.tiny import make_student

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def outputs(project: Path, name: str) -> str:
    """What the cells of a notebook show."""
    notebook = nbformat.read(project / "notebooks" / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(project / "notebooks")}}).execute()
    return json.dumps([cell.get("outputs") for cell in notebook.cells])


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("REBASE_ENV", "test")


@pytest.mark.parametrize("file", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda file: file.stem)
def test_notebooks_are_committed_without_outputs(file):
    cells = nbformat.read(file, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
def test_explore_run_shows_the_run(project):
    shown = outputs(project, "explore_run")
    for words in ("score_query", "expert", "response_key", "in the training set", "train.exclude.datasets"):
        assert words in shown


@pytest.mark.slow
def test_new_task_writes_a_task_and_shows_what_it_would_get_and_cost(project):
    shown = outputs(project, "new_task")
    assert "Where are the swimming baths?" in shown
    assert "town-notices" in shown
    assert "dollars" in shown
    assert (project / "data" / "01_raw" / "tasks" / "notice_qa.yml").exists()
    assert not (project / "data" / "test" / "05_model_input" / "notice_qa").exists(), "nothing is asked of a teacher"


@pytest.mark.slow
def test_compare_shows_what_compare_made(project, reading_task: Task, tmp_path):
    made = compare(reading_task, make_student(tmp_path / "student"), tmp_path / "compared")
    reports = project / "data" / "test" / "08_reporting" / "reading_qa"
    made["comparison"].to_csv(reports / "comparison.csv", index=False)
    for name in ("comparison_plot", "curves_plot"):
        made[name].write_json(reports / f"{name}.json")
    scores = reports / "comparison_scores.json" / "2026-01-01T00.00.00.000Z" / "comparison_scores.json"
    scores.parent.mkdir(parents=True)
    scores.write_text(json.dumps(made["scores"]))
    made["predictions"].to_parquet(
        project / "data" / "test" / "07_model_output" / "reading_qa" / "comparison_predictions.parquet"
    )
    shown = outputs(project, "compare")
    for words in (
        "student_few_shot",
        "synthesized",
        "rebase - student",
        "clear",
        "gain",
        "application/vnd.plotly",
    ):
        assert words in shown
