"""The file of the response cache: damage, other files, and files of an earlier version."""

import logging
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rebase.errors import RebaseError
from rebase.teacher.batch_journal import Batch
from rebase.teacher.cache_file import count_damaged, use_earlier_file
from rebase.teacher.response_cache import ResponseCache
from tests.scripted import cached, generate_all
from tests.teacher.caches import BEGINNERS, fill, response, texts
from tests.teacher.server import Provider
from tests.teacher.teachers import Echo, cached_keys, echo, hosted, prompts, request, texts_of


def test_file_that_is_no_database_is_set_aside_and_a_new_one_begun(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    garbage = b"garbage" * 1000
    path.parent.mkdir()
    path.write_bytes(garbage)

    teacher = Echo()
    with caplog.at_level(logging.WARNING):
        assert texts(teacher, path, prompts(5)) == list(map(echo, prompts(5)))

    assert teacher.prompts == prompts(5)
    (aside,) = path.parent.glob("responses.sqlite.damaged-*")
    assert aside.read_bytes() == garbage
    assert str(path) in caplog.text
    assert str(aside) in caplog.text
    again = Echo()
    assert texts(again, path, prompts(5)) == list(map(echo, prompts(5)))
    assert not again.requests


def spoil(path: Path, place: float) -> None:
    """Overwrite one page of the file, ``place`` of the way through it."""
    content = bytearray(path.read_bytes())
    page = 4096 * int(place * (len(content) // 4096 - 1))
    content[page : page + 4096] = (b"garbage!" * 512)[:4096]
    path.write_bytes(content)


def pages_of(path: Path, name: str) -> list[int]:
    """The leaf pages of a table or index, or its root where that is the only one."""
    with closing(sqlite3.connect(path)) as connection:
        try:
            found = connection.execute("SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf'", (name,))
            return [number for (number,) in found]
        except sqlite3.OperationalError:
            pytest.skip("this SQLite does not tell where its pages are")


@pytest.mark.parametrize("place", [0.25, 0.5, 0.75, 1.0])
def test_damaged_cache_is_rebuilt_from_its_readable_rows(
    path: Path, place: float, caplog: pytest.LogCaptureFixture
) -> None:
    asked = fill(path, 500)
    spoil(path, place)
    damaged = path.read_bytes()

    with caplog.at_level(logging.WARNING), closing(ResponseCache(path)) as store:
        answers = [store.get(one.key("echo", "echo-1")) for one in asked]

    whole = [answer for answer in answers if answer is not None]
    assert len(whole) >= 480
    assert all(answer in (None, response(one)) for one, answer in zip(asked, answers, strict=True))
    (aside,) = path.parent.glob("responses.sqlite.damaged-*")
    assert aside.read_bytes() == damaged
    assert f"Saved the {len(whole)} responses that are whole" in caplog.text
    assert str(aside) in caplog.text

    caplog.clear()
    with closing(ResponseCache(path)) as store:
        assert len(list(store.export())) == len(whole)
    assert not caplog.text


def test_damage_of_the_last_page_costs_only_its_rows(path: Path) -> None:
    asked = fill(path, 500)
    content = bytearray(path.read_bytes())
    last = max(pages_of(path, "responses"))
    content[(last - 1) * 4096 : last * 4096] = b"\xff" * 4096
    path.write_bytes(content)
    with closing(ResponseCache(path)) as store:
        assert 480 <= sum(store.get(one.key("echo", "echo-1")) is not None for one in asked) < 500


@pytest.mark.parametrize("content", [b'{"echo":"prompt 3"', b"\xff\xfe not UTF-8"])
def test_a_response_that_is_not_as_written_is_set_aside_and_requested_again(
    path: Path, provider: Provider, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    asked = list(map(request, prompts(5)))
    expected = texts_of(generate_all(cached(hosted("openai", provider.address), path), asked))
    with closing(sqlite3.connect(path)) as connection, connection:
        assert count_damaged(connection) == 0
        key = connection.execute("SELECT key FROM responses LIMIT 1").fetchone()
        connection.execute("UPDATE responses SET text = CAST(? AS TEXT) WHERE key = ?", (content, *key))
        assert count_damaged(connection) == 1
    assert texts_of(generate_all(cached(hosted("openai", provider.address), path), asked)) == expected
    assert f"1 responses of {path} are damaged" in caplog.text
    assert len(provider.asked()) == 5 + 1
    with closing(sqlite3.connect(path)) as connection:
        kept = connection.execute("SELECT CAST(text AS BLOB) FROM damaged_responses").fetchall()
        assert kept == [(content,)]
        assert count_damaged(connection) == 0


def test_damage_does_not_lose_the_journal_of_batches(path: Path) -> None:
    batch = Batch("token", "batch-1", tuple(one.key("echo", "echo-1") for one in map(request, "ab")), datetime.now(UTC))
    with closing(ResponseCache(path)) as store:
        assert store.journal.add(batch, map(request, "ab"), "echo", "echo-1")
    fill(path, 100)
    content = bytearray(path.read_bytes())
    page = pages_of(path, "responses")[3]
    content[(page - 1) * 4096 : page * 4096] = b"\xff" * 4096
    path.write_bytes(content)
    with closing(ResponseCache(path)) as store:
        (found,) = store.journal.open_batches("echo", "echo-1")
    assert (found.token, found.batch_id, found.created) == (batch.token, batch.batch_id, batch.created)
    assert set(found.keys) == set(batch.keys)


def test_several_processes_rebuild_a_damaged_cache_once(tmp_path: Path) -> None:
    for number in range(3):
        path = tmp_path / f"{number}.sqlite"
        fill(path, 60)
        content = bytearray(path.read_bytes())
        (root,) = [page for page in range(len(content) // 4096) if page + 1 == pages_of(path, "responses_by_model")[0]]
        content[root * 4096 : (root + 1) * 4096] = b"\xff" * 4096  # an index: every response is whole
        path.write_bytes(content)
    result = subprocess.run([sys.executable, "-c", BEGINNERS, str(tmp_path), "60"], check=False, capture_output=True)
    assert result.returncode == 0, result.stderr
    for number in range(3):
        assert len(cached_keys(tmp_path / f"{number}.sqlite")) == 60
        assert len(list(tmp_path.glob(f"{number}.sqlite.damaged-*T????????????"))) == 1


def test_cache_that_cannot_be_opened_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RebaseError, match=r"file/responses.sqlite cannot be opened"):
        texts(Echo(), tmp_path / "file" / "responses.sqlite", ["a"])
    (tmp_path / "folder").mkdir()
    with pytest.raises(RebaseError, match="folder cannot be opened"):
        texts(Echo(), tmp_path / "folder", ["a"])


def test_other_database_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE responses (id INTEGER)")
    with pytest.raises(RebaseError, match=r"responses.sqlite cannot be (opened|used)"):
        texts(Echo(), path, ["a"])
    assert not list(path.parent.glob("*damaged*"))


def test_file_of_an_earlier_version_is_renamed_and_gets_the_new_names(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    earlier = path.with_name("replies.sqlite")
    asked = request("a")
    with closing(sqlite3.connect(earlier)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(
            "CREATE TABLE replies (key TEXT PRIMARY KEY, provider TEXT NOT NULL, model TEXT NOT NULL,"
            " text TEXT NOT NULL, finish TEXT NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,"
            " created TEXT NOT NULL, request TEXT NOT NULL)"
        )
        connection.execute("CREATE INDEX replies_by_model ON replies (provider, model)")
        values = ("echo", "echo-1", echo("a"), "stop", 10, 2, "2026-01-01", asked.to_json())
        connection.execute(f"INSERT INTO replies VALUES (?{', ?' * 8})", (asked.key("echo", "echo-1"), *values))
        connection.commit()
    with caplog.at_level(logging.INFO):
        use_earlier_file(path)
        use_earlier_file(path)
    assert caplog.text.count("replies.sqlite") == 1
    assert not earlier.exists()
    with closing(ResponseCache(path)) as store:
        assert store.get(asked.key("echo", "echo-1")) == response(asked)
