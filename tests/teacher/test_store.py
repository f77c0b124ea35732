"""The store of replies: nothing is paid for twice, whatever happens."""

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebase.errors import RebaseError
from rebase.teacher.anthropic import AnthropicTeacher
from rebase.teacher.openai import OpenAITeacher
from rebase.teacher.protocol import Failure, Reply, Request, ignore
from rebase.teacher.store import LOOK_AHEAD, ReplyStore, StoredTeacher
from tests.teacher.server import KEY, MODEL, Answer, Provider
from tests.teacher.test_api import prompts, request

#: Asks for 200 replies and prints them, as a run in a process of its own.
CLIENT = """
import sys
from pathlib import Path
from rebase.teacher.openai import OpenAITeacher
from rebase.teacher.store import StoredTeacher
from tests.teacher.test_api import prompts, request

address, store = sys.argv[1:]
with StoredTeacher(OpenAITeacher("good-model", "sk-right-key", address), Path(store)).open() as session:
    for reply in session.ask(request(prompt) for prompt in prompts(200)):
        print(reply.text)
"""

#: Eight processes open one new store at the same moment, fifteen times.
BEGINNERS = """
import multiprocessing, pathlib, sys
from rebase.teacher.store import ReplyStore

def begin(path, barrier):
    barrier.wait()
    ReplyStore(path).close()

context = multiprocessing.get_context("fork")
for number in range(15):
    barrier = context.Barrier(8)
    path = pathlib.Path(sys.argv[1], str(number))
    processes = [context.Process(target=begin, args=(path, barrier)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit("an opening failed")
"""


class Echo:
    """A teacher that answers with the prompt, in windows of its own, and remembers what it was asked."""

    provider = "echo"
    model = "echo-1"

    def __init__(self, window: int = 1) -> None:
        self.window = window
        self.asked: list[str] = []
        self.opened = 0

    @contextmanager
    def open(self) -> Iterator["Echo"]:
        self.opened += 1
        yield self

    def ask(
        self, requests: Iterable[Request], arrived: Callable[[Request, Reply], None] = ignore
    ) -> Iterator[Reply | Failure]:
        source = iter(requests)
        while waiting := list(islice(source, self.window)):
            answers = list(map(self.answer, waiting))
            for asked, answer in zip(waiting, answers, strict=True):
                if isinstance(answer, Reply):
                    arrived(asked, answer)
            yield from answers

    def answer(self, asked: Request) -> Reply | Failure:
        prompt = asked.messages[0].content
        self.asked.append(prompt)
        key = asked.key(self.provider, self.model)
        return Failure(key, "no luck") if "fail" in prompt else Reply(key, prompt, "stop", 1, 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "replies.sqlite"


def texts(teacher: StoredTeacher, asked: list[str]) -> list[str]:
    with teacher.open() as session:
        return [
            answer.text if isinstance(answer, Reply) else answer.reason for answer in session.ask(map(request, asked))
        ]


def stored_keys(path: Path) -> set[str]:
    """The keys in the file, as another process sees them; none while it is only being made."""
    if not path.exists():
        return set()
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        try:
            return {key for (key,) in connection.execute("SELECT key FROM replies")}
        except sqlite3.OperationalError:
            return set()


def openai(provider: Provider) -> OpenAITeacher:
    return OpenAITeacher(MODEL, KEY, f"{provider.address}/v1")


def test_second_run_asks_nothing_and_opens_nothing(path: Path) -> None:
    first, second = Echo(), Echo()
    asked = prompts(100)
    assert texts(StoredTeacher(first, path), asked) == asked
    assert texts(StoredTeacher(second, path), asked) == asked
    assert (first.asked, first.opened) == (asked, 1)
    assert (second.asked, second.opened) == ([], 0)


def test_new_requests_cost_only_themselves(path: Path) -> None:
    texts(StoredTeacher(Echo(), path), prompts(3))
    teacher = Echo()
    texts(StoredTeacher(teacher, path), ["new", *prompts(4)])
    assert teacher.asked == ["new", "prompt 3"]


def test_what_a_reply_depends_on_is_in_its_key(path: Path) -> None:
    asked = request("a")
    other_sample = request("a", sample=1)
    other_schema = request("a", schema={"type": "object", "properties": {}})
    teacher = Echo()
    with StoredTeacher(teacher, path).open() as session:
        list(session.ask([asked, other_sample, other_schema, asked]))
    assert teacher.asked == ["a", "a", "a"]


def test_failures_are_not_stored(path: Path) -> None:
    assert texts(StoredTeacher(Echo(), path), ["a", "fail", "b"]) == ["a", "no luck", "b"]
    teacher = Echo()
    assert texts(StoredTeacher(teacher, path), ["a", "fail", "b"]) == ["a", "no luck", "b"]
    assert teacher.asked == ["fail"]


@settings(max_examples=20, deadline=None)
@given(
    known=st.sets(st.integers(0, 90), max_size=60),
    asked=st.lists(st.integers(0, 90), max_size=150),
    window=st.integers(1, LOOK_AHEAD + 10),
)
def test_order_is_kept_and_each_missing_reply_asked_for_once(
    tmp_path_factory: pytest.TempPathFactory, known: set[int], asked: list[int], window: int
) -> None:
    path = tmp_path_factory.mktemp("store") / "replies.sqlite"
    texts(StoredTeacher(Echo(), path), [str(number) for number in known])
    teacher = Echo(window)
    wanted = [str(number) for number in asked]
    assert texts(StoredTeacher(teacher, path), wanted) == wanted
    assert sorted(teacher.asked) == sorted({str(number) for number in asked if number not in known})


def test_stored_replies_are_read_no_further_ahead_than_needed(path: Path) -> None:
    texts(StoredTeacher(Echo(), path), prompts(3 * LOOK_AHEAD))
    read = []

    def stream() -> Iterator[Request]:
        for prompt in prompts(3 * LOOK_AHEAD):
            read.append(prompt)
            yield request(prompt)

    with StoredTeacher(Echo(), path).open() as session:
        replies = session.ask(stream())
        next(replies)
        assert len(read) <= LOOK_AHEAD


def test_reply_is_stored_when_it_arrives_not_when_its_turn_comes(path: Path, provider: Provider) -> None:
    provider.plan("slow", Answer(seconds=1.0))
    with StoredTeacher(openai(provider), path).open() as session, ThreadPoolExecutor() as pool:
        caller = pool.submit(list, session.ask(map(request, ["slow", "b", "c"])))
        while len(stored_keys(path)) < 2:
            assert not caller.done()
            time.sleep(0.01)
        assert not caller.done()
    assert [reply.text for reply in caller.result()] == [f'{{"echo": "{prompt}"}}' for prompt in ("slow", "b", "c")]
    assert len(stored_keys(path)) == 3


def test_cut_replies_and_refusals_are_replies(path: Path, provider: Provider) -> None:
    provider.plan("a", Answer(text='{"ec', finish="length"))
    provider.plan("b", Answer(text="No.", finish="refusal"))
    for _ in range(2):
        with StoredTeacher(openai(provider), path).open() as session:
            answers = list(session.ask([request("a"), request("b")]))
        assert [(answer.text, answer.finish) for answer in answers] == [('{"ec', "length"), ("No.", "refusal")]
    assert len(provider.asked()) == 2


def test_row_tells_what_was_asked_and_no_key_is_in_the_file(path: Path, provider: Provider) -> None:
    texts(StoredTeacher(openai(provider), path), ["a question"])
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        (row,) = connection.execute("SELECT * FROM replies").fetchall()
    assert (row["provider"], row["model"], row["finish"]) == ("openai", MODEL, "stop")
    assert (row["input_tokens"], row["output_tokens"]) == (12, 5)
    assert row["created"].endswith("+00:00")
    kept = json.loads(row["request"])
    assert kept["messages"] == [{"role": "user", "content": "a question"}]
    assert kept["sampling"] == {"temperature": 0.7, "max_tokens": 100}
    assert all(KEY.encode() not in file.read_bytes() for file in path.parent.iterdir())


def test_stop_in_the_middle_keeps_what_arrived(path: Path, provider: Provider) -> None:
    provider.plan("prompt 30", Answer(status=401, message="key revoked"))
    with pytest.raises(RebaseError, match="key revoked"):
        texts(StoredTeacher(openai(provider), path), prompts(100))
    answered = {entry.prompt for entry in provider.asked() if entry.status == 200}
    assert len(stored_keys(path)) == len(answered) >= 30


def start_client(provider: Provider, path: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", CLIENT, f"{provider.address}/v1", str(path)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        command,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )


def test_killed_run_goes_on_where_it_was(path: Path, provider: Provider) -> None:
    provider.default = lambda prompt: Answer(seconds=0.02)
    client = start_client(provider, path)
    while len(stored_keys(path)) < 50:
        assert client.poll() is None, "the client ended before it was killed"
        time.sleep(0.01)
    client.send_signal(signal.SIGKILL)
    client.wait()
    time.sleep(0.1)  # what was in flight ends at the server
    stored = stored_keys(path)
    asked_before = len(provider.asked())

    asked = prompts(200)
    assert texts(StoredTeacher(openai(provider), path), asked) == [f'{{"echo": "{prompt}"}}' for prompt in asked]

    again = {request(entry.prompt).key("openai", MODEL) for entry in provider.asked()[asked_before:]}
    assert not again & stored
    assert len(again) == 200 - len(stored)
    # Only what was in flight when the kill came was asked twice.
    assert len(provider.asked()) - 200 <= 8


def test_two_processes_share_one_store(path: Path, provider: Provider) -> None:
    provider.default = lambda prompt: Answer(seconds=0.005)
    clients = [start_client(provider, path) for _ in range(2)]
    outputs = [client.communicate(timeout=60)[0].splitlines() for client in clients]
    assert [client.returncode for client in clients] == [0, 0]
    assert outputs == [[f'{{"echo": "{prompt}"}}' for prompt in prompts(200)]] * 2
    assert len(stored_keys(path)) == 200


def test_many_processes_begin_a_new_store_at_once(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", BEGINNERS, str(tmp_path)], check=False, capture_output=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("damage", ["not a database", "torn page"])
def test_damaged_store_is_set_aside_and_a_new_one_begun(
    path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    texts(StoredTeacher(Echo(), path), prompts(200))
    content = path.read_bytes()
    assert len(content) > 20_000
    garbage = b"garbage" * 1000
    path.write_bytes(
        garbage if damage == "not a database" else content[:8192] + garbage + content[8192 + len(garbage) :]
    )

    teacher = Echo()
    with caplog.at_level(logging.WARNING):
        assert texts(StoredTeacher(teacher, path), prompts(5)) == prompts(5)

    assert teacher.asked == prompts(5)
    (aside,) = path.parent.glob("replies.sqlite.damaged-*")
    assert garbage in aside.read_bytes()
    assert str(path) in caplog.text
    assert str(aside) in caplog.text
    assert texts(StoredTeacher(Echo(), path), prompts(5)) == prompts(5)


def test_store_that_cannot_be_opened_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RebaseError, match=r"file/replies.sqlite cannot be opened"):
        texts(StoredTeacher(Echo(), tmp_path / "file" / "replies.sqlite"), ["a"])
    (tmp_path / "folder").mkdir()
    with pytest.raises(RebaseError, match="folder cannot be opened"):
        texts(StoredTeacher(Echo(), tmp_path / "folder"), ["a"])


def test_other_database_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE replies (id INTEGER)")
    with pytest.raises(RebaseError, match=r"replies.sqlite cannot be used"):
        texts(StoredTeacher(Echo(), path), ["a"])
    assert not list(path.parent.glob("*damaged*"))


def test_missing_key_stops_a_first_run_but_not_a_replay(
    path: Path, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    keyless = StoredTeacher(AnthropicTeacher(MODEL, None, provider.address), path)
    with pytest.raises(RebaseError, match="ANTHROPIC_API_KEY"):
        keyless.check()
    assert not path.exists()

    texts(StoredTeacher(AnthropicTeacher(MODEL, KEY, provider.address), path), prompts(3))
    with caplog.at_level(logging.WARNING):
        keyless.check()
    assert "ANTHROPIC_API_KEY" in caplog.text
    assert len(texts(keyless, prompts(3))) == 3
    with pytest.raises(RebaseError, match="ANTHROPIC_API_KEY"):
        texts(keyless, ["new"])


def test_put_keeps_the_reply_that_came_first(path: Path) -> None:
    asked = request("a")
    with closing(ReplyStore(path)) as store:
        for text in ("first", "second"):
            store.put(asked, Reply("key", text, "stop", 1, 1), "echo", "echo-1")
        assert store.get("key").text == "first"
        assert store.get("other") is None
