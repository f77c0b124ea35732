"""The store of responses: nothing is paid for twice, whatever happens."""

import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rebase.errors import RebaseError
from rebase.teacher.protocol import Message, Request, Response, Sampling
from rebase.teacher.response_cache import ResponseCache
from rebase.teacher.settings import TeacherSettings
from tests.scripted import cached, generate_all
from tests.teacher.caches import BEGINNERS, export, fill, response
from tests.teacher.server import KEY, MODEL, Answer, Provider
from tests.teacher.teachers import cached_keys, echo, hosted, identity, prompts, request, start, texts_of

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


def test_put_does_not_replace_a_response(path: Path) -> None:
    asked = request("a")
    with closing(ResponseCache(path)) as store:
        for text in ("first", "second"):
            store.put(asked, Response("key", text, "stop", 1, 1), "echo", "echo-1")
        assert store.get("key").text == "first"
        assert store.get("other") is None


# What people do with the store


def test_exported_responses_can_be_loaded_elsewhere(path: Path, tmp_path: Path) -> None:
    asked = fill(path, 1100, length=20)
    lines = [json.loads(json.dumps(line)) for line in export(path)]
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
    lines = export(path)
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
