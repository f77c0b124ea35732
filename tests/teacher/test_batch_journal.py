"""The journal of batches."""

import json
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from filelock import Timeout

from rebase.teacher.batch_journal import Batch
from rebase.teacher.protocol import Request
from rebase.teacher.response_cache import ResponseCache
from tests.teacher.caches import export, response
from tests.teacher.teachers import request


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
    kept = {line["key"]: json.loads(line["request"]) for line in export(path)}
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
