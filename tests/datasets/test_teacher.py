"""The catalog's teacher: the right handle from the configuration, and no key anywhere in sight."""

import logging
from pathlib import Path
from typing import Any

import pytest
from kedro.config import OmegaConfigLoader
from kedro.framework.context import CatalogCommandsMixin
from kedro.io import DataCatalog, DatasetError
from kedro.pipeline import Node, Pipeline

from rebase.datasets.teacher import TeacherDataset
from rebase.errors import RebaseError
from rebase.teacher.anthropic import AnthropicTeacher
from rebase.teacher.local import LocalTeacher
from rebase.teacher.openai import OpenAITeacher

CONF = Path(__file__).parents[2] / "conf"
SECRET = "sk-ant-very-secret"


class Catalog(DataCatalog, CatalogCommandsMixin):
    """The catalog with what ``kedro catalog`` calls, as a session makes it."""


def dataset(**changes: Any) -> TeacherDataset:
    values = {
        "provider": "local",
        "model": "package:x",
        "filepath": "cache/replies.sqlite",
        "folder": "models",
        **changes,
    }
    return TeacherDataset(**values)


def project_catalog(environment: str = "base", **params: Any) -> Catalog:
    """The project's own entry, resolved as a run would resolve it."""
    loader = OmegaConfigLoader(
        str(CONF),
        env=environment,
        base_env="base",
        default_run_env="base",
        runtime_params=params,
        merge_strategy={"globals": "soft"},
    )
    return Catalog.from_config({"teacher": loader["catalog"]["teacher"]}, loader["credentials"])


def test_local_teacher_gets_its_revision_and_folder(tmp_path: Path) -> None:
    teacher = dataset(revision="abc", folder=str(tmp_path)).load()
    assert teacher.teacher == LocalTeacher("package:x", "abc", tmp_path)
    assert (teacher.provider, teacher.model) == ("local", "package:x@abc")
    assert teacher.path == Path("cache/replies.sqlite")


def test_hosted_teachers_get_their_own_key_and_address() -> None:
    keys = {"anthropic": "a-key", "openai": "o-key"}
    anthropic = dataset(provider="anthropic", model="claude", credentials=keys).load()
    openai = dataset(provider="openai", model="llama", base_url="http://host/v1", credentials=keys).load()
    assert anthropic.teacher == AnthropicTeacher("claude", "a-key", None)
    assert openai.teacher == OpenAITeacher("llama", "o-key", "http://host/v1")


def test_unknown_provider_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(DatasetError, match="no teacher provider 'gemini': known are local, anthropic, openai"):
        dataset(provider="gemini").load()


def test_teacher_is_read_only() -> None:
    with pytest.raises(DatasetError, match="read-only"):
        dataset().save("anything")


def test_base_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    teacher = project_catalog().load("teacher")
    assert isinstance(teacher.teacher, LocalTeacher)
    teacher.check()


def test_parameters_choose_provider_and_model() -> None:
    catalog = project_catalog(teacher={"provider": "openai", "model": "llama", "base_url": "http://host/v1"})
    assert catalog.load("teacher").teacher == OpenAITeacher("llama", None, "http://host/v1")


def _use(teacher: Any) -> str:
    return str(teacher)


def test_key_comes_from_the_environment_and_is_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", SECRET)
    with caplog.at_level(logging.DEBUG):
        catalog = project_catalog(teacher={"provider": "anthropic", "model": "claude"})
        handle = catalog.load("teacher")
        entry = catalog.get("teacher")
        with pytest.raises(DatasetError) as caught:
            catalog.save("teacher", 1)
    assert handle.teacher.api_key == SECRET
    shown = [repr(catalog), str(catalog), repr(entry), str(entry), str(entry._describe()), repr(handle), str(handle)]
    used = [Pipeline([Node(_use, "teacher", "text", name="use")])]
    shown += [str(catalog.to_config()[0]), str(catalog.describe_datasets(used)), str(catalog.resolve_patterns(used))]
    shown += [str(caught.value), caplog.text]
    shown += list(capsys.readouterr())
    assert not [text for text in shown if SECRET in text]


def test_empty_variable_is_a_missing_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "")
    teacher = project_catalog(teacher={"provider": "anthropic", "model": "claude"}).load("teacher").teacher
    with pytest.raises(RebaseError, match="needs an API key"):
        teacher.check()
