"""The documentation: it builds without a network and without a broken link, and what it names is there."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from docs.reference import render
from kedro.framework.project import pipelines
from kedro.framework.startup import bootstrap_project
from playwright.sync_api import expect

from rebase.records import Task
from rebase.teacher.settings import TeacherSettings
from tests.browser import needs_chromium, open_page

ROOT = Path(__file__).parents[1]
BASE = ROOT / "conf" / "base"
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))]
PAGES.append(ROOT / "conf" / "README.md")
#: Commands of Kedro's own, and of its plugins, that the pages name.
KEDRO = {"run", "viz", "package", "registry", "catalog"}


def read(pattern: str) -> dict:
    return {name: value for file in BASE.glob(pattern) for name, value in yaml.safe_load(file.read_text()).items()}


def leaves(settings: dict, prefix: str = "") -> list[str]:
    return [
        name
        for key, value in settings.items()
        for name in (leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [prefix + key])
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages as a site: the build fails on a broken link and on a page that no other leads to."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", "-c", "docs", ".", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def reference(name: str) -> str:
    return (ROOT / "docs" / "reference" / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["catalog", "commands", "globals", "parameters", "pipelines", "tasks"])
def test_the_reference_is_current(name):
    bootstrap_project(ROOT)
    pipelines.set_requested(None)
    assert render(reference(name)) == reference(name), "python -m docs.reference"


@pytest.mark.parametrize("group", sorted(read("parameters_*.yml")))
def test_every_parameter_is_in_the_reference(group):
    [section] = re.findall(rf"^## {group}$.*?(?=^## |\Z)", reference("parameters"), re.DOTALL | re.MULTILINE)
    for name in leaves(read("parameters_*.yml")[group]):
        assert f"| `{name}` |" in section


def test_every_setting_and_entry_is_in_the_reference():
    assert all(f"| `{name.split('.', 1)[-1]}` |" in reference("globals") for name in leaves(read("globals.yml")))
    assert all(f"| `{name}` |" in reference("catalog") for name in read("catalog_*.yml") if not name.startswith("_"))


def test_the_reference_says_types_bounds_comments_and_what_environments_change():
    line = "| `top_n` | integer ≥ 1, ≤ 10,000,000 | `220` | the published run uses 3000 | `gpu` `3000`, `test` `40` |"
    assert line in reference("parameters").splitlines()


def test_pages_fetch_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        fetched = re.findall(
            r"<(?:script|img|link|iframe)[^>]+(?:src|href)=[\"']?(?:https?:)?//[^>]*>", page.read_text()
        )
        assert not fetched, page
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\([\"']?(?:https?:)?//", sheet.read_text()), sheet


@pytest.mark.slow
@needs_chromium
def test_the_search_of_the_site_works_from_its_folder(site):
    with open_page(1280, 900) as (page, seen):
        page.goto((site / "index.html").as_uri())
        page.get_by_placeholder("Search").fill("rationale_then_answer")
        page.keyboard.press("Enter")
        expect(page.locator(".search").get_by_role("link", name="Train several students").first).to_be_visible()
        assert seen.errors == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_can_be_read_without_a_build(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?![a-z]+:)([^)#]+)[^)]*\)", text):
        assert page.parent.joinpath(target).exists(), target
    assert not re.search(r"--8<--|^:{3,}|\{\{ \w+ \}\}|```\{", text, re.MULTILINE), "what only a site generator reads"


def commands() -> list[tuple[str, list[str]]]:
    """Every ``kedro`` command of a fenced block, and the page that has it."""
    command_lines = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip().startswith("kedro "):
                    command_lines.append((page.name, shlex.split(line, comments=True)[1:]))
    return command_lines


@pytest.fixture(scope="module")
def names():
    """The names that commands may use."""
    from rebase.cli import cli

    bootstrap_project(ROOT)
    pipelines.set_requested(None)
    declared = set(re.findall(r"runtime_params:([a-z_.]+)", "".join(f.read_text() for f in BASE.glob("catalog*.yml"))))
    declared |= {f"teacher.{name}" for name in TeacherSettings.model_fields}
    nodes = {node for pipeline in pipelines.values() for node in pipeline.nodes}
    every = {name: [command, *getattr(command, "commands", {}).values()] for name, command in cli.commands.items()}
    return {
        "command": set(cli.commands) | KEDRO,
        "options": {
            name: {text for one in group_commands for given in one.params for text in given.opts}
            for name, group_commands in every.items()
        },
        "pipeline": set(pipelines),
        "node": {name for node in nodes for name in (node.name, node.short_name)},
        "setting": declared | set(leaves(read("parameters_*.yml"))),
    }


def test_commands_that_pages_show_name_what_is_there(names):
    kinds = {"--pipelines": "pipeline", "--pipeline": "pipeline", "--from-nodes": "node", "--to-nodes": "node"}
    assert len(commands()) > 30
    for page, (command, *arguments) in commands():
        assert command in names["command"], (page, command)
        if command not in KEDRO:
            fields = task_fields(arguments) if command == "ask" else set()
            assert options(arguments) <= names["options"][command] | fields, (page, arguments)
        for name, _, value in (argument.partition("=") for argument in arguments):
            if name == "--params":
                settings = {part.split("=")[0] for part in re.split(r",(?=[a-z_.]+=)", value)}
                assert settings <= names["setting"], (page, value)
            elif name in kinds and "NAME" not in value:
                assert set(value.split(",")) <= names[kinds[name]], (page, value)


def test_the_method_names_modules_that_exist():
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    paths = re.findall(r"`([a-z_]+/[\w/]*(?:\.py)?)`", text)
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / "src" / "rebase" / path).exists()] == []


def test_the_readme_describes_every_pipeline(names):
    table = re.findall(r"^\| `(\w+)` \| [^|]+ \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert names["pipeline"] - {"__default__"} == set(table)


def task_fields(arguments: list[str]) -> set[str]:
    """The options of ``kedro ask`` that give the fields of its task, of the repository or of the tutorial."""
    name = next(text.partition("=")[2] for text in arguments if text.startswith("--task="))
    files = (ROOT / "data/01_raw/tasks" / f"{name}.yml", ROOT / "docs/tutorial" / f"{name}.yml")
    content = next(file.read_text() for file in files if file.exists())
    return {f"--{field}" for field in Task.parse(yaml.safe_load(content), name).query_fields}


def options(arguments: list[str]) -> set[str]:
    return {argument.partition("=")[0] for argument in arguments if argument.startswith("-")}


@pytest.mark.parametrize(
    ("page", "file"),
    [
        ("howto/provider", "howto/rule_teacher.py"),
        ("tutorial/index", "tutorial/notice_qa.yml"),
        ("tutorial/index", "tutorial/notices.yml"),
    ],
)
def test_pages_show_the_files_that_tests_use(page, file):
    shown, used = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in (f"{page}.md", file))
    assert f"\n{used}```\n" in shown


def test_the_tutorial_s_task_is_whole():
    folder = ROOT / "docs" / "tutorial"
    task = Task.parse(yaml.safe_load((folder / "notice_qa.yml").read_text()), "notice_qa.yml")
    items = [json.loads(line) for line in (folder / "notice_qa.jsonl").read_text().splitlines()]
    assert len(items) == 24
    for item in items:
        assert item["answer"][0] in item["notice"]
        assert task.render_query({name: item[task.evaluation.fields[name]] for name in task.query_fields})
