"""The catalog's teacher: the right handle from the configuration, and no key anywhere in sight."""

import json
import logging
import re
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
from rebase.teacher.budget import FREE, Price
from rebase.teacher.local import LocalTeacher
from rebase.teacher.openai import OpenAITeacher
from rebase.teacher.replay import ReplayTeacher

CONF = Path(__file__).parents[2] / "conf"
SECRET = "sk-ant-very-secret"


class Catalog(DataCatalog, CatalogCommandsMixin):
    """The catalog with what ``kedro catalog`` calls, as a session makes it."""


PRICES = {"as_of": "2026-11-21", "models": {"anthropic": {"claude": {"input": 1, "output": 5}}}}


def dataset(
    credentials: dict[str, str] | None = None,
    filepath: str = "cache/responses.sqlite",
    folder: str = "models",
    prices: dict[str, Any] = PRICES,
    **settings: Any,
) -> TeacherDataset:
    settings = {"provider": "local", "model": "package:x", **settings}
    return TeacherDataset(settings, filepath, folder, prices, credentials)


def test_no_secret_among_the_settings_is_shown() -> None:
    entry = dataset(
        provider="openai",
        base_url=f"https://me:{SECRET}@host/v1?key={SECRET}",
        api_key=SECRET,
        headers={"X-Tenant": SECRET},
    )
    assert SECRET not in entry.preview()
    assert SECRET not in str(entry), "Kedro's messages hold it"
    assert json.loads(entry.preview())["base_url"] == "https://host/v1"


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
    assert teacher.path == Path("cache/responses.sqlite")


def test_hosted_teachers_get_their_own_key_and_address() -> None:
    keys = {"anthropic": "a-key", "openai": "o-key"}
    anthropic = dataset(provider="anthropic", model="claude", credentials=keys).load()
    openai = dataset(provider="openai", model="llama", base_url="http://host/v1", credentials=keys).load()
    assert anthropic.teacher == AnthropicTeacher("claude", "a-key", None)
    assert openai.teacher == OpenAITeacher("llama", "o-key", "http://host/v1")


def test_replay_uses_the_same_cache() -> None:
    teacher = dataset(provider="replay", model="anthropic/claude", filepath="some/r.sqlite").load()
    assert teacher.teacher == ReplayTeacher("anthropic", "claude", Path("some/r.sqlite"))
    assert (teacher.provider, teacher.model, teacher.price) == ("anthropic", "claude", FREE)


def test_settings_reach_the_handle() -> None:
    teacher = dataset(
        provider="anthropic",
        model="claude",
        batch=True,
        max_concurrency=5,
        timeout=30,
        budget_usd=1.5,
        max_requests=100,
        on_budget="stop",
    ).load()
    assert (teacher.teacher.max_concurrency, teacher.teacher.timeout) == (5, 30)
    assert teacher.batch
    assert teacher.price == Price(input=1, output=5)
    settings = teacher.budget.settings
    assert (settings.budget_usd, settings.max_requests, settings.on_budget) == (1.5, 100, "stop")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("provider", ""),
        ("model", ""),
        ("batch", "maybe"),
        ("budget_usd", 0),
        ("budget_usd", "much"),
        ("max_requests", 0),
        ("max_requests", 1.5),
        ("on_budget", "ask"),
        ("max_concurrency", 0),
        ("timeout", 0),
        ("temperature", 1),
        ("base_url", "localhost:8000/v1"),
        ("structured_output", "yaml"),
        ("extra_body", ["top_p"]),
        ("extra_body", {"model": "other"}),
        ("extra_body", {"messages": []}),
        ("headers", {"X Tenant": "a"}),
        ("headers", {"X-Tenant": "a\nb"}),
        ("headers", {"X-Tenant": None}),
    ],
)
def test_wrong_setting_is_an_error_that_names_it(field: str, value: Any) -> None:
    with pytest.raises((RebaseError, DatasetError), match=rf"(?s)teacher \(globals.yml.*{field}"):
        dataset(**{field: value}).load()


def test_wrong_header_is_an_error_that_does_not_show_it() -> None:
    with pytest.raises((RebaseError, DatasetError), match=r"headers\.X-Key: String should match") as caught:
        dataset(headers={"X-Key": f"{SECRET}\n"}).load()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("base_url", "address"),
    [
        (None, ""),
        ("https://api.openai.com/v1/", ""),
        ("https://api.anthropic.com", ""),
        ("http://host:8000/v1/", "http://host:8000/v1"),
        (f"https://me:{SECRET}@host/v1?key={SECRET}", "https://host/v1"),
    ],
)
def test_address_is_part_of_the_key_except_the_providers_own(base_url: str | None, address: str) -> None:
    teacher = dataset(provider="openai", base_url=base_url, credentials={"openai": "k"}).load().teacher
    assert teacher.address == address
    other = dataset(provider="openai", base_url=base_url, extra_body={"b": 1, "a": {"key": SECRET}}).load().teacher
    assert re.fullmatch(rf"{re.escape(address)}#[0-9a-f]{{12}}", other.address)


def test_unknown_provider_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises((RebaseError, DatasetError), match=r"'gemini'.*one of: local, anthropic, openai, replay"):
        dataset(provider="gemini").load()


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"models": {}}, "as_of"),
        ({"as_of": "2026", "models": {"openai": {"gpt": {"input": -1, "output": 1}}}}, "models.openai.gpt.input"),
        ({"as_of": "2026", "models": {"openai": {"gpt": {"input": 1}}}}, "models.openai.gpt.output"),
        ({"as_of": "2026", "models": {"openai": {"gpt": {"input": 1, "output": 1, "batch": 2}}}}, "batch"),
    ],
)
def test_wrong_price_table_is_an_error_that_names_the_field(data: dict[str, Any], field: str) -> None:
    with pytest.raises(DatasetError, match=f"(?s)globals.yml, prices.*{field}"):
        dataset(prices=data).load()


def test_handles_of_one_entry_share_a_budget_and_what_is_learned() -> None:
    one, other = dataset(max_requests=5, provider="openai"), dataset(max_requests=5, provider="openai")
    assert one.load().teacher.learned is one.load().teacher.learned
    assert one.load().budget is one.load().budget
    assert one.load().budget is not other.load().budget
    catalog = project_catalog(teacher={"max_requests": 5})
    assert catalog.load("teacher").budget is catalog.load("teacher").budget


def test_budget_in_dollars_needs_a_price() -> None:
    keys = {"anthropic": "a-key"}
    dataset(provider="anthropic", model="claude", budget_usd=1, credentials=keys).load().check()
    unknown = dataset(provider="anthropic", model="claude-99", budget_usd=1, credentials=keys).load()
    with pytest.raises(RebaseError, match="no price for anthropic/claude-99 in the table of 2026-11-21"):
        unknown.check()


def test_teacher_is_read_only() -> None:
    with pytest.raises(DatasetError, match="read-only"):
        dataset().save("anything")


def test_base_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    teacher = project_catalog().load("teacher")
    assert isinstance(teacher.teacher, LocalTeacher)
    teacher.check()


def test_parameters_choose_provider_and_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    catalog = project_catalog(teacher={"provider": "openai", "model": "llama", "base_url": "http://host/v1"})
    assert catalog.load("teacher").teacher == OpenAITeacher("llama", None, "http://host/v1")


def test_parameters_override_each_setting() -> None:
    changed = {
        "provider": "anthropic",
        "model": "claude-haiku-5-5",
        "batch": True,
        "budget_usd": 2.5,
        "max_requests": 10,
        "on_budget": "stop",
        "max_concurrency": 7,
        "timeout": 60,
        "structured_output": "prompt",
        "extra_body": {"top_p": 0.5},
        "headers": {"X-Tenant": "a"},
    }
    teacher = project_catalog(teacher=changed).load("teacher")
    assert (teacher.provider, teacher.model, teacher.batch) == ("anthropic", "claude-haiku-5-5", True)
    assert (teacher.teacher.max_concurrency, teacher.teacher.timeout) == (7, 60)
    assert (teacher.teacher.structured_output, teacher.teacher.extra_body) == ("prompt", {"top_p": 0.5})
    assert teacher.teacher.headers == {"X-Tenant": "a"}
    assert (teacher.budget.settings.budget_usd, teacher.budget.settings.max_requests) == (2.5, 10)
    assert teacher.budget.settings.on_budget == "stop"
    assert teacher.price is not None
    assert teacher.price_in_words.startswith("$")


def test_cache_can_be_another_file() -> None:
    assert project_catalog(responses="elsewhere/r.sqlite").load("teacher").path == Path("elsewhere/r.sqlite")


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
