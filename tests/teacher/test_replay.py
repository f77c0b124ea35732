"""The teacher that only repeats itself."""

from contextlib import closing
from pathlib import Path

import pytest

from rebase.errors import RebaseError
from rebase.teacher.protocol import Failure
from rebase.teacher.replay import ReplayTeacher
from rebase.teacher.response_cache import ResponseCache
from rebase.teacher.settings import TeacherSettings
from tests.scripted import cached, generate_all
from tests.teacher.server import MODEL, Provider, serving
from tests.teacher.teachers import echo, hosted, prompts, request, texts_of


def replaying(name: str, path: Path, base_url: str | None = None) -> ReplayTeacher:
    settings = TeacherSettings(provider="replay", model=name or " ", base_url=base_url)
    return ReplayTeacher.from_settings(settings, cache_path=path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "responses.sqlite"


@pytest.mark.parametrize("kind", ["anthropic", "openai"])
def test_a_run_is_repeated_without_network_or_key(path: Path, kind: str) -> None:
    with serving() as provider:
        teacher = hosted(kind, provider.address)
        first = generate_all(cached(teacher, path), map(request, prompts(5)))
    replay = cached(replaying(f"{kind}/{MODEL}", path, teacher.base_url), path)
    replay.check()
    again = generate_all(replay, map(request, [*prompts(5), "new"]))
    assert texts_of(again[:5]) == texts_of(first) == list(map(echo, prompts(5)))
    assert [answer.key for answer in again[:5]] == [answer.key for answer in first]
    message = f"no cached response of {kind}/{MODEL} at {teacher.base_url}"
    assert again[5] == Failure(teacher.key(request("new")), message)


def test_responses_can_come_from_elsewhere(path: Path, tmp_path: Path, provider: Provider) -> None:
    generate_all(cached(hosted("openai", provider.address), path), map(request, prompts(3)))
    other = tmp_path / "other.sqlite"
    with closing(ResponseCache(path)) as source, closing(ResponseCache(other)) as target:
        target.load(source.export())
    replay = cached(replaying(f"openai/{MODEL}", other, f"{provider.address}/v1"), other)
    assert texts_of(generate_all(replay, map(request, prompts(3)))) == list(map(echo, prompts(3)))


def test_model_may_hold_slashes(path: Path) -> None:
    teacher = replaying("openai/org/model", path)
    assert (teacher.provider, teacher.model) == ("openai", "org/model")


@pytest.mark.parametrize("name", ["", "openai", "openai/", "/model"])
def test_wrong_name_is_an_error_that_shows_the_form(path: Path, name: str) -> None:
    with pytest.raises(RebaseError, match="set it to PROVIDER/MODEL"):
        replaying(name, path)


def test_missing_cache_is_an_error_before_any_work(path: Path) -> None:
    with pytest.raises(RebaseError, match=r"responses.sqlite is missing"):
        cached(replaying("openai/gpt", path), path).check()
    assert not path.exists()
