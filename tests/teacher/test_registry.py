"""Providers: the built-in ones, and those of other packages."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from rebase.datasets.teacher import TeacherDataset
from rebase.errors import RebaseError
from rebase.teacher.protocol import Failure
from rebase.teacher.registry import PROVIDERS, find_provider
from tests.scripted import generate_all
from tests.teacher.plugin import install_rule_teacher
from tests.teacher.teachers import request


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package of docs/howto/provider.md, installed."""
    monkeypatch.syspath_prepend(str(install_rule_teacher(tmp_path)))
    monkeypatch.delitem(sys.modules, "rule_teacher", raising=False)
    importlib.invalidate_caches()


@pytest.mark.parametrize("name", ["local", "anthropic", "openai", "replay"])
def test_built_in_providers(name: str) -> None:
    assert find_provider(name) is PROVIDERS[name]


def test_the_provider_of_the_how_to(plugin: None, tmp_path: Path) -> None:
    settings = [{"provider": "local", "model": "x"}, {"provider": "rule", "model": "first-words"}]
    teacher = TeacherDataset(settings, str(tmp_path / "responses.sqlite"), "models", {"as_of": "", "models": {}}).load()
    teacher.check()
    response, failure = generate_all(teacher, [request("a b c d e f g h i"), request("one", schema={"items": {}})])
    assert json.loads(response.text) == {"echo": "a b c d e f g h"}
    assert isinstance(failure, Failure)
    assert (teacher.provider, teacher.model, response.dollars) == ("rule", "first-words", 0)


def test_unknown_provider_is_an_error_with_the_known_ones(plugin: None) -> None:
    with pytest.raises(RebaseError, match=r"'gemini'.*one of: local, anthropic, openai, replay, rule\."):
        find_provider("gemini")


def test_a_package_that_cannot_be_imported_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = install_rule_teacher(tmp_path)
    (folder / "rule_teacher.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "rule_teacher", raising=False)
    with pytest.raises(RebaseError, match="cannot be loaded from rule_teacher:RuleTeacher"):
        find_provider("rule")
