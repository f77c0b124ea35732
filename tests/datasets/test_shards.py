import hashlib
import json
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kedro.io import DatasetError

from rebase.datasets import ShardStore
from rebase.datastore.shards import Shard, ShardPlan, with_metadata
from rebase.errors import RebaseError
from tests.damage import cut, damage_file, every_damage


def plan(contents, built=None):
    """A plan of one-row tables, each known by its content, that notes what is built."""

    def shard(name, content):
        def build(tool):
            if built is not None:
                built.append((name, tool))
            return pa.table({"content": [content]})

        return Shard(name, hashlib.sha256(content.encode()).hexdigest(), build)

    return ShardPlan([shard(*item) for item in contents.items()])


def contents(store):
    return {name: table["content"].to_pylist()[0] for name, table in store.load().items()}


def test_only_what_changed_is_built_and_what_is_gone_is_removed(tmp_path):
    store, built = ShardStore(str(tmp_path / "rows")), []
    assert not store.exists()
    store.save(plan({"a": "one", "b": "two", "c": "three"}, built))
    assert [name for name, _ in built] == ["a", "b", "c"]
    built.clear()
    changed = {"a": "one", "b": "2", "d": "four"}
    store.save(plan(changed, built))
    assert [name for name, _ in built] == ["b", "d"]
    assert contents(store) == changed
    assert len(list((tmp_path / "rows").iterdir())) == 5  # three shards, the manifest and the lock


def test_a_store_knows_what_it_was_made_of(tmp_path):
    rows, vectors = (ShardStore(str(tmp_path / name)) for name in ("rows", "vectors"))
    rows.save(plan({"a": "one", "b": "two"}))
    vectors.save(replace(plan({"a": "1"}), made_of=rows.load().digest))
    vectors.load().check_made_of(rows.load())
    rows.save(plan({"a": "one", "b": "two"}))
    vectors.load().check_made_of(rows.load())
    for changed in ({"a": "one", "b": "2"}, {"a": "one"}, {"a": "two", "b": "one"}):
        rows.save(plan(changed))
        with pytest.raises(RebaseError, match=r"vectors was not made of what .*rows has now"):
            vectors.load().check_made_of(rows.load())


def test_a_manifest_of_an_earlier_version_does_not_know_it(tmp_path):
    store = ShardStore(str(tmp_path))
    store.save(plan({"a": "one"}))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if k != "made_of"}))
    assert contents(store) == {"a": "one"}
    store.load().check_made_of(store.load())


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_a_plan_can_keep_shards_from_being_removed(tmp_path, is_interrupted):
    store, built = ShardStore(str(tmp_path)), []
    store.save(plan({name: name for name in "abcdefg"}))
    if is_interrupted:
        (tmp_path / "manifest.json").unlink()
    fewer = replace(plan({"a": "changed", "a/é": "x"}, built), may_remove=False)
    with pytest.raises(DatasetError, match=r"6 of its 7 datasets, .* b, c, d, e, f, …\. .*`datastore`.*remove=true"):
        store.save(fewer)
    assert built == []
    assert len(list(tmp_path.glob("*.parquet"))) == 7
    store.save(replace(fewer, may_remove=True))
    assert contents(store) == {"a": "changed", "a/é": "x"}
    store.save(replace(fewer, shards=fewer.shards[::-1]))


def test_a_preview_takes_rows_of_as_many_shards_as_it_can(tmp_path):
    store = ShardStore(str(tmp_path / "rows"))
    tables = {name: pa.table({"row": [f"{name}{number}" for number in range(9)]}) for name in "abc"}
    store.save(ShardPlan([Shard(name, name, lambda _, table=table: table) for name, table in tables.items()]))
    assert store.preview(nrows=6)["data"] == [["a0"], ["a1"], ["b0"], ["b1"], ["c0"], ["c1"]]
    assert store.preview(nrows=2)["data"] == [["a0"], ["b0"]]


def test_the_tool_is_opened_once_and_only_where_a_shard_is_missing(tmp_path):
    opened, built = [], []

    @contextmanager
    def tool():
        opened.append("open")
        yield "tool"
        opened.append("closed")

    store = ShardStore(str(tmp_path))
    for _ in range(2):
        store.save(ShardPlan(plan({"a": "x", "b": "y"}, built).shards, opener=tool))
    assert opened == ["open", "closed"]
    assert built == [("a", "tool"), ("b", "tool")]


def test_a_store_exists_only_when_it_is_complete(tmp_path):
    store = ShardStore(str(tmp_path))
    store.save(plan({"a": "x", "b": "y"}))
    assert store.exists()
    next(tmp_path.glob("a.*.parquet")).unlink()
    assert not store.exists()
    with pytest.raises(DatasetError, match=r"not complete.*--pipelines=ingest,embed,index"):
        store.load()


KILLED = """
import os, signal, sys
from hashlib import sha256
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
from rebase.datasets import ShardStore
from rebase.datastore.shards import Shard, ShardPlan

write = pq.write_table

def write_or_die(table, file):
    if table["content"][0].as_py() == "b":
        Path(file).write_bytes(b"PAR1 half")
        os.kill(os.getpid(), signal.SIGKILL)
    write(table, file)

pq.write_table = write_or_die

def shard(name):
    return Shard(name, sha256(name.encode()).hexdigest(), lambda _: pa.table({"content": [name]}))

ShardStore(sys.argv[1]).save(ShardPlan([shard(name) for name in "abc"]))
"""


def test_an_interrupted_save_resumes(tmp_path):
    store = ShardStore(str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not store.exists()
    left = {file.name for file in tmp_path.iterdir()}
    assert len(left) == 3  # the first shard, half of the second under a temporary name, and the lock
    assert sum(name.endswith(".parquet") for name in left) == 1
    built = []
    store.save(plan({name: name for name in "abc"}, built))
    assert [name for name, _ in built] == ["b", "c"]
    assert contents(store) == {"a": "a", "b": "b", "c": "c"}
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".") and file.name != ".lock"]


def test_an_error_in_a_build_loses_nothing_built_before(tmp_path):
    def fail(_):
        raise RuntimeError("no")

    store, built = ShardStore(str(tmp_path)), []
    shards = plan({"a": "x", "b": "y"}, built).shards
    with pytest.raises(DatasetError, match="no"):
        store.save(ShardPlan([shards[0], Shard("b", shards[1].fingerprint, fail)]))
    assert not store.exists()
    store.save(ShardPlan(shards))
    assert [name for name, _ in built] == ["a", "b"]


def test_a_provisional_shard_does_not_replace_a_good_one(tmp_path, caplog):
    store = ShardStore(str(tmp_path))

    def plan_of(fingerprint, text, provisional):
        table = with_metadata(pa.table({"content": [text]}), {"provisional": text if provisional else ""})
        return ShardPlan([Shard("a", fingerprint * 64, lambda _: table)])

    store.save(plan_of("1", "good", False))
    for _ in range(2):
        store.save(plan_of("2", "unreachable", True))
        assert contents(store) == {"a": "good"}
        assert "the earlier rows are kept" in caplog.text
    store.save(plan_of("2", "new", False))
    assert contents(store) == {"a": "new"}


def test_two_runs_do_not_write_to_one_store(tmp_path):
    store, messages = ShardStore(str(tmp_path)), []

    def build(_):
        with pytest.raises(DatasetError, match="another run is writing") as error:
            ShardStore(str(tmp_path)).save(plan({"b": "y"}))
        messages.append(str(error.value))
        return pa.table({"content": ["x"]})

    store.save(ShardPlan([Shard("a", "f" * 64, build)]))
    assert len(messages) == 1
    assert contents(store) == {"a": "x"}


FULL = """
import resource, signal, sys
import pyarrow as pa
from kedro.io import DatasetError
from rebase.datasets import ShardStore
from rebase.datastore.shards import Shard, ShardPlan

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
small, big = (pa.table({"content": [text]}) for text in ("x", "".join(map(str, range(100_000)))))
try:
    ShardStore(sys.argv[1], sys.argv[2]).save(
        ShardPlan([Shard(name, name * 64, lambda _, table=table: table) for name, table in zip("ab", (small, big))])
    )
except DatasetError as error:
    print(error)
"""


@pytest.mark.parametrize("file_format", ["parquet", "arrow"])
def test_a_full_disk_is_an_error_and_earlier_shards_are_kept(tmp_path, file_format):
    """A limit on the size of a file stands for a disk that is full."""
    output = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), file_format], capture_output=True, text=True, check=True
    ).stdout
    assert "cannot be written" in output
    assert "make room" in output
    lock, kept = sorted(file.name for file in tmp_path.iterdir())
    assert lock == ".lock"
    assert re.fullmatch(rf"a\.a{{16}}-[0-9a-f]{{16}}\.{file_format}", kept)


def test_files_and_memory_mapped_tables_are_shards_too(tmp_path):
    files = ShardStore(str(tmp_path / "files"), "file")
    files.save(ShardPlan([Shard("a", "f" * 64, lambda _: lambda path: path.write_text("content"))]))
    assert files.load()["a"].read_text() == "content"
    arrow = ShardStore(str(tmp_path / "arrow"), "arrow")
    arrow.save(ShardPlan([Shard("a", "f" * 64, lambda _: pa.table({"n": np.arange(100_000)}))]))
    before = pa.total_allocated_bytes()
    table = arrow.load()["a"]
    assert pa.total_allocated_bytes() - before < 10_000
    assert table["n"].chunk(0).to_numpy(zero_copy_only=True).sum() == 4_999_950_000


def test_builds_that_may_share_a_tool_run_at_once(tmp_path):
    barrier = threading.Barrier(3)

    def build(_):
        barrier.wait(timeout=20)  # Raises unless three builds are here together.
        return pa.table({"content": ["x"]})

    ShardStore(str(tmp_path)).save(ShardPlan([Shard(name, "f" * 64, build) for name in "abc"], threads=3))


odd = ["..", ".", "a/b", "../../up", "/abs", "a\\b", ".hidden", ".a.parquet-b", "manifest.json", "日本" * 40, "x" * 250]
names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60) | st.sampled_from([*odd, "k=v"])


@given(names=st.sets(names, min_size=1, max_size=5))
def test_any_name_is_a_safe_file_of_its_own(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("key=value") / "store"
    store = ShardStore(str(folder))
    # One fingerprint for all: the names alone must tell the files apart.
    shards = [Shard(name, "f" * 64, lambda _, name=name: pa.table({"content": [name]})) for name in names]
    for _ in range(2):
        store.save(ShardPlan(shards))
    assert contents(store) == {name: name for name in names}
    assert list(store.load()) == sorted(names)
    assert list(folder.parent.iterdir()) == [folder]
    assert len(list(folder.iterdir())) == len(names) + 2


def test_a_provisional_shard_is_built_again_until_it_is_not(tmp_path):
    store, built = ShardStore(str(tmp_path)), []

    def build(_):
        built.append("a")
        return with_metadata(pa.table({"content": [len(built)]}), {"provisional": "one" if len(built) < 3 else ""})

    seen = []
    for _ in range(5):
        store.save(ShardPlan([Shard("a", "f" * 64, build)]))
        seen.append((store.load().fingerprints["a"], contents(store)["a"]))
        assert store.exists()
    assert len(built) == 3
    assert [content for _, content in seen] == [1, 2, 3, 3, 3]
    # What was made from the stand-in must be made again from the real one.
    assert len({fingerprint for fingerprint, _ in seen[2:]} & {fingerprint for fingerprint, _ in seen[:2]}) == 0
    assert len(list(tmp_path.glob("*.parquet"))) == 1


def sample_store(folder, file_format, built=None):
    """A store of two shards, and a function that saves it again."""

    def shard(name):
        def build(_):
            if built is not None:
                built.append(name)
            if file_format == "file":
                return lambda path: path.write_text(name * 100)
            return pa.table({"content": [name * 100]})

        return Shard(name, hashlib.sha256(name.encode()).hexdigest(), build)

    store = ShardStore(str(folder), file_format)
    return store, lambda: store.save(ShardPlan([shard("a"), shard("b")]))


def read(store, name):
    shard = store.load()[name]
    return shard.to_pylist() if isinstance(shard, pa.Table) else shard.read_text()


@every_damage
@pytest.mark.parametrize("file_format", ["parquet", "arrow", "file"])
def test_a_damaged_shard_is_named_and_built_again_alone(tmp_path, caplog, file_format, damage):
    built = []
    store, save = sample_store(tmp_path, file_format, built)
    save()
    before = {name: read(store, name) for name in "ab"}
    [file] = tmp_path.glob("a.*")
    damage_file(file, damage)
    with pytest.raises(RebaseError, match=rf"{file.name} is damaged: .*--pipelines=ingest,embed,index"):
        read(store, "a")
    assert read(store, "b") == before["b"]
    assert store.problem().startswith(f"{file} is damaged")
    save()
    assert store.problem() == ""
    assert built == ["a", "b", "a"]
    assert f"1 damaged shards are built again: {file.name}" in caplog.text
    assert {name: read(store, name) for name in "ab"} == before


@every_damage
def test_a_damaged_manifest_is_written_again_from_the_shards(tmp_path, caplog, damage):
    built = []
    store, save = sample_store(tmp_path, "parquet", built)
    save()
    manifest = tmp_path / "manifest.json"
    damage_file(manifest, damage)
    assert not store.exists()
    with pytest.raises(RebaseError, match=r"has a damaged manifest\.json: .*--pipelines=ingest,embed,index"):
        store.load()
    save()
    assert "manifest.json is damaged and is written again" in caplog.text
    assert built == ["a", "b"]
    assert set(store.load()) == {"a", "b"}


@pytest.mark.parametrize("position", range(0, 300, 7))
def test_any_turned_byte_of_a_manifest_is_noticed(tmp_path, position):
    store, save = sample_store(tmp_path, "parquet")
    save()
    manifest = tmp_path / "manifest.json"
    content, before = bytearray(manifest.read_bytes()), store.load()
    content[position % len(content)] ^= 1
    manifest.write_bytes(content)
    if store.exists():  # The byte is white space, or in the name of the manifest's own checksum.
        after = store.load()
        assert (after.fingerprints, after.checksums, after.seconds) == (
            before.fingerprints, before.checksums, before.seconds,
        )  # fmt: skip


@pytest.mark.parametrize("file_format", ["parquet", "arrow"])
def test_a_shard_of_an_earlier_version_has_no_checksum_and_is_read(tmp_path, file_format):
    built = []
    store, save = sample_store(tmp_path, file_format, built)
    save()
    for file in tmp_path.glob(f"*.{file_format}"):
        file.rename(file.with_name(re.sub("-[0-9a-f]{16}", "", file.name)))
    shards = store._manifest().shards
    (tmp_path / "manifest.json").write_text(json.dumps({"seconds": 1.0, "shards": shards}))
    assert read(store, "a") == [{"content": "a" * 100}]
    save()
    assert built == ["a", "b"]
    [file] = tmp_path.glob("a.*")
    damage_file(file, cut)
    save()
    assert built == ["a", "b", "a"]
    assert read(store, "a") == [{"content": "a" * 100}]
