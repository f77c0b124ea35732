"""``--params``, and the commands ``kedro responses`` on the store that the catalog names."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pytest
from click.testing import CliRunner
from kedro.io import DataCatalog

from rebase import cli
from rebase.teacher.protocol import Message, Request, Response, Sampling
from rebase.teacher.response_cache import ResponseCache
from tests.test_end_to_end import copy_of_project, kedro, outputs

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


def test_prune_asks_first_and_wants_to_know_which(path: Path) -> None:
    assert "Select responses" in call("prune", code=2)
    call("prune", "--model", "m", code=1)  # nobody answers: aborted
    assert "0 responses deleted" in call("prune", "--before", "2020-01-01", "--yes")
    assert "anthropic/m: 1" in call("list")
