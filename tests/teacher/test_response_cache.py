"""The store of responses: nothing is paid for twice, whatever happens."""

import json
import logging
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from filelock import Timeout

from rebase.errors import RebaseError
from rebase.teacher.batch_journal import Batch
from rebase.teacher.cache_file import count_damaged, use_earlier_file
from rebase.teacher.protocol import Message, Request, Response, Sampling
from rebase.teacher.response_cache import ResponseCache
from rebase.teacher.settings import TeacherSettings
from tests.scripted import cached, generate_all
from tests.teacher.server import KEY, MODEL, Answer, Provider
from tests.teacher.teachers import Echo, cached_keys, echo, hosted, identity, prompts, request, start, texts_of

#: Asks for 200 responses and prints them, as a run in a process of its own.
CLIENT = """
import sys
from pathlib import Path
from tests.scripted import generate_all, cached
from tests.teacher.teachers import hosted, prompts, request

address, store = sys.argv[1:]
for response in generate_all(cached(hosted("openai", address), Path(store)), map(request, prompts(200))):
    print(response.text)
"""

#: Eight processes open one new store (or one damaged store) at the same moment, several times.
BEGINNERS = """
import multiprocessing, pathlib, sys
from rebase.teacher.response_cache import ResponseCache

def begin(path, barrier):
    barrier.wait()
    store = ResponseCache(path)
    ok = sys.argv[2] == "0" or len(list(store.export())) == int(sys.argv[2])
    store.close()
    sys.exit(0 if ok else 1)

context = multiprocessing.get_context("fork")
paths = sorted(pathlib.Path(sys.argv[1]).glob("*.sqlite")) or [pathlib.Path(sys.argv[1], str(n)) for n in range(15)]
for path in paths:
    barrier = context.Barrier(8)
    processes = [context.Process(target=begin, args=(path, barrier)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit("an opening failed, or did not find all")
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "responses.sqlite"


def texts(teacher: Echo, path: Path, asked: list[str]) -> list[str]:
    return texts_of(generate_all(cached(teacher, path), map(request, asked)))


def response(asked: Request, **changes: object) -> Response:
    text = echo(asked.messages[0].content)
    return replace(Response(asked.key("echo", "echo-1"), text, "stop", 10, 2), **changes)


def fill(path: Path, count: int, length: int = 500) -> list[Request]:
    """Store responses to so many prompts that are ``length`` characters long."""
    asked = [request(f"prompt {number} ".ljust(length, "x")) for number in range(count)]
    with closing(ResponseCache(path)) as store:
        for one in asked:
            store.put(one, response(one), "echo", "echo-1")
    return asked


# Stored when it arrives, kept when killed


def test_key_stays_what_it_was() -> None:
    """Responses that were paid for with an earlier version are found again."""
    asked = Request("Write.", (Message("user", "ü"),), {"type": "object"}, Sampling(0.7, 100), 2)
    assert asked.key("openai", "m") == "6ec66334f9462c31056fc2b37da9d4a26eb36d31d637313430632afe608cb4ec"
    assert Request.from_json(asked.to_json()) == asked


def test_response_is_cached_when_it_arrives_not_when_its_turn_comes(path: Path, provider: Provider) -> None:
    provider.plan("slow", Answer(seconds=1.0))
    answers: list = []
    asked = list(map(request, ["slow", "b", "c"]))
    caller = threading.Thread(
        target=lambda: answers.extend(generate_all(cached(hosted("openai", provider.address), path), asked))
    )
    caller.start()
    while len(cached_keys(path)) < 2:
        assert caller.is_alive()
        time.sleep(0.01)
    assert not answers
    caller.join()
    assert texts_of(answers) == [echo("slow"), echo("b"), echo("c")]
    assert len(cached_keys(path)) == 3


def test_cut_responses_and_refusals_are_responses(path: Path, provider: Provider) -> None:
    provider.plan("a", Answer(text='{"ec', finish="length"))
    provider.plan("b", Answer(text="No.", finish="refusal"))
    for _ in range(2):
        answers = generate_all(cached(hosted("openai", provider.address), path), [request("a"), request("b")])
        assert [(answer.text, answer.finish) for answer in answers] == [('{"ec', "length"), ("No.", "refusal")]
    assert len(provider.asked()) == 2


def test_row_has_the_request_and_no_key_is_in_the_file(path: Path, provider: Provider) -> None:
    generate_all(cached(hosted("openai", provider.address), path), [request("a question")])
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        (row,) = connection.execute("SELECT * FROM responses").fetchall()
    assert (row["provider"], row["model"], row["finish"]) == ("openai", MODEL, "stop")
    assert (row["input_tokens"], row["output_tokens"], row["batch"]) == (12, 5, 0)
    assert row["seconds"] > 0
    assert row["created"].endswith("+00:00")
    kept = json.loads(row["request"])
    assert kept["messages"] == [{"role": "user", "content": "a question"}]
    assert kept["sampling"] == {"temperature": 0.7, "max_tokens": 100}
    assert all(KEY.encode() not in file.read_bytes() for file in path.parent.iterdir())


def test_stop_keeps_received_responses(path: Path, provider: Provider) -> None:
    provider.plan("prompt 30", Answer(status=401, message="key revoked"))
    with pytest.raises(RebaseError, match="key revoked"):
        generate_all(cached(hosted("openai", provider.address), path), map(request, prompts(100)))
    answered = {entry.prompt for entry in provider.asked() if entry.status == 200}
    assert len(cached_keys(path)) == len(answered) > 0


def test_killed_run_resumes(path: Path, provider: Provider) -> None:
    provider.default = lambda prompt: Answer(seconds=0.2)
    client = start(CLIENT, provider.address, str(path))
    while len(cached_keys(path)) < 50:
        assert client.poll() is None, "the client ended before it was killed"
        time.sleep(0.01)
    client.send_signal(signal.SIGKILL)
    client.communicate()
    while provider.max_concurrency:
        time.sleep(0.01)
    kept, asked_before = cached_keys(path), len(provider.asked())

    provider.default = lambda prompt: Answer()
    asked = prompts(200)
    assert texts_of(generate_all(cached(hosted("openai", provider.address), path), map(request, asked))) == list(
        map(echo, asked)
    )

    again = {
        request(entry.prompt).key(*identity("openai", provider.address)) for entry in provider.asked()[asked_before:]
    }
    assert not again & kept
    assert len(again) == 200 - len(kept)
    # Only what was in flight when the kill came was asked twice: a response that was sent may not have been stored.
    assert len(provider.asked()) - 200 <= TeacherSettings.model_fields["max_concurrency"].default


def test_two_processes_share_one_cache(path: Path, provider: Provider) -> None:
    provider.default = lambda prompt: Answer(seconds=0.005)
    clients = [start(CLIENT, provider.address, str(path)) for _ in range(2)]
    outputs = [client.communicate(timeout=120) for client in clients]
    assert [client.returncode for client in clients] == [0, 0], outputs
    assert [output.splitlines() for output, _ in outputs] == [list(map(echo, prompts(200)))] * 2
    assert len(cached_keys(path)) == 200


def test_many_processes_create_a_cache_at_the_same_time(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", BEGINNERS, str(tmp_path), "0"], check=False, capture_output=True)
    assert result.returncode == 0, result.stderr


# Damage


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


def test_put_does_not_replace_a_response(path: Path) -> None:
    asked = request("a")
    with closing(ResponseCache(path)) as store:
        for text in ("first", "second"):
            store.put(asked, Response("key", text, "stop", 1, 1), "echo", "echo-1")
        assert store.get("key").text == "first"
        assert store.get("other") is None


# The journal


def journalled(store: ResponseCache, token: str, asked: list[Request]) -> Batch | None:
    batch = Batch(token, None, tuple(one.key("echo", "echo-1") for one in asked), datetime.now(UTC))
    return batch if store.journal.add(batch, asked, "echo", "echo-1") else None


def test_batch_is_open_until_its_responses_are_cached(path: Path) -> None:
    asked = list(map(request, "abc"))
    with closing(ResponseCache(path)) as store:
        batch = journalled(store, "token", asked)
        (found,) = store.journal.open_batches("echo", "echo-1")
        assert (found.batch_id, set(found.keys)) == (None, set(batch.keys))
        assert store.journal.open_batches("echo", "echo-2") == []
        store.journal.set_id("token", "batch-1")
        assert store.journal.open_batches("echo", "echo-1")[0].batch_id == "batch-1"

        foreign = request("d")
        store.journal.close("token", [response(one, batch=True) for one in (*asked[:2], foreign)])
        assert store.journal.open_batches("echo", "echo-1") == []
        assert store.journal.batch_ids() == {"batch-1"}
        assert store.get(batch.keys[0]) == response(asked[0], batch=True)
        assert store.get(batch.keys[2]) is None
        assert store.get(foreign.key("echo", "echo-1")) is None
    kept = {line["key"]: json.loads(line["request"]) for line in _export(path)}
    assert kept[batch.keys[0]]["messages"][0]["content"] == "a"


def test_request_is_in_one_open_batch_at_a_time(path: Path) -> None:
    a, b, c = map(request, "abc")
    with closing(ResponseCache(path)) as store:
        store.put(a, response(a), "echo", "echo-1")
        assert journalled(store, "stored", [a, b]) is None
        assert journalled(store, "first", [b]) is not None
        assert journalled(store, "second", [b, c]) is None
        assert [batch.token for batch in store.journal.open_batches("echo", "echo-1")] == ["first"]
        store.journal.close("first")
        assert journalled(store, "third", [b, c]) is not None


def test_one_process_at_a_time_submits(path: Path) -> None:
    with closing(ResponseCache(path)) as store, closing(ResponseCache(path)) as other:
        with store.journal.submission, pytest.raises(Timeout):
            other.journal.submission.acquire(timeout=0)
        other.journal.submission.acquire(timeout=0)
        other.journal.submission.release()


# What people do with the store


def _export(path: Path) -> list[dict]:
    with closing(ResponseCache(path)) as store:
        return list(store.export())


def test_exported_responses_can_be_loaded_elsewhere(path: Path, tmp_path: Path) -> None:
    asked = fill(path, 1100, length=20)
    lines = [json.loads(json.dumps(line)) for line in _export(path)]
    assert len(lines) == 1100
    with closing(ResponseCache(tmp_path / "other.sqlite")) as store:
        store.put(asked[3], response(asked[3], text="mine"), "echo", "echo-1")
        assert store.load(lines) == (1099, 1100)
        assert store.load(lines) == (0, 1100)
        assert store.get(asked[3].key("echo", "echo-1")).text == "mine"
        assert store.get(asked[900].key("echo", "echo-1")) == response(asked[900])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"key": "0" * 64}, "Line 3: the key is not that of the request"),
        ({"model": "echo-2"}, "Line 3: the key is not that of the request"),
        ({"request": "{}"}, "Line 3 is not an exported response"),
        ({"request": "no JSON"}, "Line 3 is not an exported response"),
        ({"text": None}, "Line 3 is not an exported response: TypeError text is None"),
        ({"input_tokens": "many"}, "Line 3 is not an exported response: TypeError input_tokens is 'many'"),
        ({"text": "\ud800"}, "Line 3 is not an exported response"),
    ],
)
def test_wrong_line_is_named_and_nothing_is_loaded(path: Path, tmp_path: Path, change: dict, complaint: str) -> None:
    fill(path, 4)
    lines = _export(path)
    lines[2] |= change
    with closing(ResponseCache(tmp_path / "other.sqlite")) as store:
        with pytest.raises(RebaseError, match=complaint):
            store.load(lines)
        with pytest.raises(RebaseError, match="Line 1 is not an exported response"):
            store.load([{"some": "thing"}])
        assert list(store.export()) == []


def test_summary_and_prune(path: Path) -> None:
    a, b, c = map(request, "abc")
    with closing(ResponseCache(path)) as store:
        for one, provider, model in ((a, "echo", "echo-1"), (b, "echo", "echo-2"), (c, "other", "echo-1")):
            store.put(one, response(one, key=one.key(provider, model)), provider, model)
        store.put(b, response(b), "echo", "echo-1")
        today = datetime.now(UTC).isoformat()[:10]
        summary = store.summary()
        assert [row[:5] for row in summary] == [
            ("echo", "echo-1", 2, 20, 4),
            ("echo", "echo-2", 1, 10, 2),
            ("other", "echo-1", 1, 10, 2),
        ]
        assert all(row[5] <= row[6] for row in summary)
        assert store.prune(None, None, "2000-01-01") == 0
        assert store.prune("echo", "echo-1", "2000-01-01") == 0
        assert store.prune("echo", "echo-1", None) == 2
        assert store.tokens_per_character("echo", "echo-2")
        assert store.tokens_per_character("echo", "echo-1") is None
        assert store.prune(None, "echo-1", None) == 1
        tomorrow = (datetime.fromisoformat(today) + timedelta(days=1)).isoformat()[:10]
        assert store.prune(None, None, tomorrow) == 1
        assert store.summary() == []


def test_tokens_per_character_are_those_of_this_teacher(path: Path) -> None:
    with closing(ResponseCache(path)) as store:
        assert store.tokens_per_character("echo", "echo-1") is None
        one = request("x" * (100 - len("Write.")))
        store.put(one, response(one, input_tokens=25), "echo", "echo-1")
        assert store.tokens_per_character("echo", "echo-1") == 0.25
        assert store.tokens_per_character("echo", "echo-2") is None
