"""The commands ``kedro responses``, on the store that the catalog names."""

import json
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from kedro.io import DataCatalog

from rebase import cli
from rebase.teacher.protocol import Message, Request, Response, Sampling
from rebase.teacher.response_cache import ResponseCache

REQUEST = Request("Write.", (Message("user", "one"),), {"type": "object"}, Sampling())


@pytest.fixture(scope="module")
def catalog() -> DataCatalog:
    """The catalog as the commands load it, once for all tests."""
    return cli._load_catalog(None, None)


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
    said = call("import", str(file), code=1)
    assert words in said
    assert "ine 2" in said
    assert "No responses are cached" in call("list")


def test_prune_asks_first_and_wants_to_know_which(path: Path) -> None:
    assert "Select responses" in call("prune", code=2)
    call("prune", "--model", "m", code=1)  # nobody answers: aborted
    assert "0 responses deleted" in call("prune", "--before", "2020-01-01", "--yes")
    assert "anthropic/m: 1" in call("list")
