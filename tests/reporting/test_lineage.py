"""The lineage in a real browser: the static site that ``kedro lineage`` writes, of a project that has run."""

import json
import re
from inspect import signature
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner
from kedro_viz.server import load_and_populate_data
from playwright.sync_api import expect

from rebase import cli
from rebase.pipelines.rebase.pipeline import MAIN_DATASETS
from rebase.reporting.lineage import _Site
from tests.browser import go_to_lineage, needs_chromium, open_page, serving
from tests.test_conf import entries
from tests.test_end_to_end import kedro


@pytest.fixture(scope="module")
def site(project):
    kedro(project, "lineage", "--env=test")
    return project / "build" / "lineage"


@pytest.fixture(scope="module")
def opened(site):
    """The page with the whole graph, and what it asked for and complained of."""
    with serving(site) as address, open_page(1280, 1000) as (page, seen):
        go_to_lineage(page, f"{address}/?expandAllPipelines=true")
        yield page, seen


@pytest.fixture
def lineage(opened):
    """The same, with the graph in front again when a test is done."""
    yield opened
    back = opened[0].get_by_text("Back", exact=True)
    if back.is_visible():
        back.click()


def nodes(site: Path, kind: str) -> dict[str, dict]:
    """The default pipeline's nodes of a kind: by name, what their panels show."""
    listed = json.loads((site / "api" / "main").read_text())["nodes"]
    return {
        node["name"]: json.loads((site / "api" / "nodes" / node["id"]).read_text())
        for node in listed
        if node["type"] == kind and "__default__" in node["pipelines"]
    }


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    done = CliRunner().invoke(cli.cli, ["lineage", "--to", str(tmp_path)])
    assert done.exit_code == 2
    assert "holds something else" in done.output
    assert (tmp_path / "thesis.txt").exists()


def test_what_the_site_relies_on_in_kedro_viz(tmp_path, monkeypatch):
    """`deploy` writes to `_path` by `_fs`: API responses, the page, then what `_ingest_heap_analytics` changes."""
    assert list(signature(load_and_populate_data).parameters)[:2] == ["path", "env"]
    assert {"package_name", "extra_params"} <= set(signature(load_and_populate_data).parameters)
    previews = []
    monkeypatch.setattr(_Site, "_upload_api_responses", lambda _, enabled: previews.append(enabled))
    (tmp_path / "api").mkdir()
    _Site(tmp_path).deploy(is_all_previews_enabled=True)
    assert previews == [True]
    assert not re.search("<link[^>]*https?://", (tmp_path / "index.html").read_text())
    assert json.loads((tmp_path / "api" / "metadata").read_text())["package_compatibilities"]
    assert "nodes" in json.loads((tmp_path / "api" / "run-status").read_text())


@pytest.mark.slow
def test_everything_has_a_preview_unless_it_is_said_not_to(site):
    catalog = entries()
    for name, shown in nodes(site, "data").items():
        wanted = catalog[name].get("metadata", {}).get("kedro-viz", {}).get("preview", True)
        assert bool(shown.get("preview")) == wanted, name


@pytest.mark.slow
def test_the_site_says_nothing_of_the_machine(site, project):
    for file in (site / "api").rglob("*"):
        assert file.is_dir() or str(project) not in file.read_text(), file


def shown(page) -> set[str]:
    return set(page.locator(".pipeline-node__text").all_text_contents())


@pytest.mark.slow
@needs_chromium
def test_the_default_view_is_the_way_from_sources_to_scores_and_readable_on_a_laptop(site):
    with serving(site) as address, open_page(1440, 900) as (page, _):
        go_to_lineage(page, address)
        assert shown(page) == MAIN_DATASETS - {"examples", "generations"} | {
            "evaluation_rows", "prepare_evaluation_items", "datastore", "retrieve", "teacher_side", "student_side",
        }  # fmt: skip
        assert page.get_by_text("1 of 6").count() == 0, "the guided tour covers the graph"
        [zoom] = page.locator(".pipeline-minimap-toolbar__scale").all_text_contents()
        assert int(zoom.removesuffix("%")) >= 55
        page.locator(".pipeline-node[data-id=teacher_side]").dispatch_event("click")
        expect(page.locator(".pipeline-node").filter(has_text="teacher_side.cot")).to_be_visible()
        assert {"teacher_side.transform", "examples", "transform_prompt", "estimate_cost"} <= shown(page)


@pytest.mark.slow
@needs_chromium
def test_the_nodes_are_there(lineage, site):
    page, _ = lineage
    assert shown(page) == set(nodes(site, "data")) | set(nodes(site, "task"))


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sources", "data/01_raw/datasets/rivers-and-lakes"),
        ("rows", "content_hash"),
        ("retrieved", "score_query"),
        ("examples", "response_key"),
        ("scores", "systems · expert · f1"),
        ("evaluate_summary", "rejected"),
        ("loss_plot", "Loss on completions"),
        ("transform_prompt", "You write training examples for a task."),
        ("task", "instruction:"),
        ("adapter", "lora_alpha"),
    ],
)
def test_a_click_opens_the_preview(lineage, name, words):
    page, _ = lineage
    page.locator(".pipeline-node").filter(has=page.get_by_text(name, exact=True)).dispatch_event("click")
    page.get_by_text("Expand preview").click()
    expect(page.locator(".pipeline-metadata-modal")).to_contain_text(words, timeout=30_000)


@pytest.mark.slow
@needs_chromium
def test_a_click_shows_the_code(lineage):
    page, _ = lineage
    page.locator(".pipeline-node").filter(has=page.get_by_text("retrieve_rows", exact=True)).dispatch_event("click")
    page.get_by_text("Show Code").click()
    expect(page.locator(".pipeline-metadata-code")).to_contain_text("def retrieve_rows(", timeout=30_000)


@pytest.mark.slow
@needs_chromium
def test_nothing_fails_and_nothing_is_asked_of_other_machines(lineage):
    _, seen = lineage
    assert seen.errors == []
    assert {urlsplit(url.removeprefix("blob:")).hostname for url in seen.requests} == {"127.0.0.1"}
