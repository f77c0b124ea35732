"""The shard store on an object store: complete or missing, as on a disk."""

import hashlib
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from kedro.io import DatasetError

from rebase.datasets import ShardStore
from rebase.datastore.shards import Shard, ShardPlan
from rebase.errors import RebaseError
from tests.s3 import Bucket, serve_bucket


@pytest.fixture(scope="module")
def bucket():
    with serve_bucket() as bucket:
        yield bucket


def store(bucket: Bucket, folder: str, file_format="parquet") -> ShardStore:
    return ShardStore(f"{bucket.url}/{folder}", file_format, credentials=bucket.options)


def plan(contents: dict[str, str], built: list[str] | None = None) -> ShardPlan:
    """A plan of one-row tables, each known by its content, that notes what is built."""

    def shard(name, content):
        def build(_):
            (built if built is not None else []).append(name)
            return pa.table({"content": [content]})

        return Shard(name, hashlib.sha256(content.encode()).hexdigest(), build)

    return ShardPlan([shard(*item) for item in contents.items()])


def contents(store: ShardStore) -> dict[str, str]:
    return {name: table["content"].to_pylist()[0] for name, table in store.load().items()}


def writing(content: str, tool):
    return lambda path: path.write_text(content)


@pytest.mark.parametrize("file_format", ["parquet", "arrow"])
def test_only_what_changed_is_built_and_what_is_gone_is_removed(bucket, file_format):
    here, built = store(bucket, f"changed-{file_format}", file_format), []
    assert not here.exists()
    here.save(plan({"a/b": "one", "b": "two", "c=d": "three"}, built))
    assert here.exists()
    assert built == ["a/b", "b", "c=d"]
    built.clear()
    changed = {"a/b": "one", "b": "2", "日本": "four"}
    here.save(plan(changed, built))
    assert built == ["b", "日本"]
    assert contents(here) == changed
    assert len(bucket.files(f"changed-{file_format}")) == 4  # three shards and the manifest


def test_files_are_fetched_and_a_changed_one_again(bucket):
    here = store(bucket, "files", "file")
    for content in ("one", "two"):
        build = partial(writing, content)
        here.save(ShardPlan([Shard("annoy_index", hashlib.sha256(content.encode()).hexdigest(), build)]))
        path = here.load()["annoy_index"]
        assert isinstance(path, Path)
        assert path.read_text() == content
        assert here.load()["annoy_index"] == path


def test_a_store_exists_only_when_it_is_complete(bucket):
    here = store(bucket, "complete")
    here.save(plan({"a": "x", "b": "y"}))
    [shard] = [name for name in bucket.files("complete") if name.startswith("a.")]
    bucket.fs.rm_file(f"{bucket.url}/complete/{shard}")
    assert not here.exists()
    with pytest.raises(DatasetError, match="not complete"):
        here.load()


KILLED = """
import os, signal, sys
from hashlib import sha256
import pyarrow as pa, pyarrow.parquet as pq
from s3fs import S3FileSystem
from rebase.datasets import ShardStore
from rebase.datastore.shards import Shard, ShardPlan

send = S3FileSystem._call_s3

async def send_or_die(self, method, *args, **kwargs):
    # The second shard is large: it goes in parts, and the process ends behind the first of them.
    if method == "upload_part" and kwargs["PartNumber"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return await send(self, method, *args, **kwargs)

S3FileSystem._call_s3 = send_or_die

def shard(name):
    table = pa.table({"content": [name], "noise": [os.urandom(101 * 2**20 if name == "b" else 1)]})
    return Shard(name, sha256(name.encode()).hexdigest(), lambda _: table)

options = {"key": "nobody", "secret": "hush-hush", "client_kwargs": {"endpoint_url": sys.argv[2]}}
ShardStore(sys.argv[1], credentials=options).save(ShardPlan([shard(name) for name in "abc"]))
"""


def test_an_interrupted_save_resumes_without_partial_objects(bucket):
    command = [sys.executable, "-c", KILLED, f"{bucket.url}/killed", bucket.endpoint]
    killed = subprocess.run(command, capture_output=True, check=False, env=os.environ)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    here = store(bucket, "killed")
    assert not here.exists()
    assert {name.partition(".")[0] for name in bucket.files("killed")} == {"a"}
    built = []
    here.save(plan({name: name for name in "abc"}, built))
    assert built == ["b", "c"]
    assert contents(here) == {"a": "a", "b": "b", "c": "c"}


def test_a_bucket_that_is_gone_says_what_to_do(bucket):
    nowhere = ShardStore("s3://no-such-bucket/rows", credentials=bucket.options)
    assert not nowhere.exists()
    with pytest.raises((RebaseError, DatasetError), match=r"cannot be written.*set another folder") as error:
        nowhere.save(plan({"a": "x"}))
    assert isinstance(error.value, RebaseError) or isinstance(error.value.__cause__, RebaseError)
    assert "hush-hush" not in str(error.value)


def test_a_bucket_that_vanishes_between_two_shards_ends_the_save():
    with serve_bucket() as bucket:
        good = plan({"a": "x"}).shards[0]

        def build(_):
            bucket.fs.rm(bucket.url, recursive=True)
            return pa.table({"content": ["y"]})

        with pytest.raises(DatasetError, match=r"b.*cannot be written"):
            store(bucket, "rows").save(ShardPlan([good, Shard("b", "f" * 64, build)]))


def test_a_server_that_is_not_there_says_what_to_do(bucket):
    options = {**bucket.options, "client_kwargs": {"endpoint_url": "http://127.0.0.1:9"}}
    options["config_kwargs"] = {"retries": {"max_attempts": 1}}
    here = ShardStore(f"{bucket.url}/rows", credentials=options)
    with pytest.raises(DatasetError) as error:
        here.save(plan({"a": "x"}))
    assert isinstance(error.value.__cause__, RebaseError)
    assert "cannot be reached" in str(error.value)
    assert "hush-hush" not in str(error.value)


def test_no_key_is_shown(bucket):
    here = store(bucket, "rows")
    shown = f"{here} {here!r} {here._describe()} {here._folder!r}"
    assert "hush-hush" not in shown
    assert "nobody" not in shown
