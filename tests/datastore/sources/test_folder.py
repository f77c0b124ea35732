"""A local folder as a source."""

import os
import resource

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rebase.datastore.shards import metadata_of
from rebase.parameters import IngestParameters
from rebase.pipelines.ingest import nodes
from rebase.pipelines.ingest.nodes import plan_ingest
from tests.datastore.folders import DATA, as_parquet, folder, rejections, rows


def test_fingerprint_changes_with_content_and_names(tmp_path):
    seen = {folder(tmp_path / "d", {"a.csv": "a\n1\n"}).fingerprint()}
    assert seen == {folder(tmp_path / "d", {}).fingerprint()}
    for files in ({"a.csv": "a\n2\n"}, {"README.md": "card"}, {"b.csv": "a\n2\n"}):
        source = folder(tmp_path / "d", files)
        assert source.fingerprint() not in seen
        seen.add(source.fingerprint())
        assert source.fingerprint().startswith(source.card().revision)


ONE, OTHER = "text\nfirst row\n", "text\nsecond row\n"
FILES_OF_THE_CARD = "---\nconfigs: [{config_name: c, data_files: one.csv}]\n---\n"


@pytest.mark.parametrize(
    ("first", "second", "are_duplicates"),
    [
        ({"train.csv": ONE, "test.csv": OTHER}, {"data/train-0.csv": ONE, "data/test-0.csv": OTHER}, True),
        ({"a.csv.gz": ONE, "README.md": "x"}, {"b.CSV.gz": ONE, "README.md": "y"}, True),
        ({"train.csv": ONE, "test.csv": OTHER}, {"train.csv": OTHER, "test.csv": ONE}, False),
        ({"train.csv": ONE, "test.csv": OTHER}, {"part-1.csv": ONE, "part-2.csv": OTHER}, False),
        ({"a.csv": ONE}, {"a.txt": ONE}, False),
        ({"a.csv.gz": ONE}, {"a.txt.gz": ONE}, False),
        (
            {"one.csv": ONE, "two.csv": OTHER, "README.md": FILES_OF_THE_CARD},
            {"one.csv": OTHER, "two.csv": ONE, "README.md": FILES_OF_THE_CARD},
            False,
        ),
    ],
)
def test_duplicates_have_the_same_files_in_the_same_splits(tmp_path, first, second, are_duplicates):
    contents = [folder(tmp_path / name, files).content() for name, files in (("a", first), ("b", second))]
    assert all(contents)
    assert (contents[0] == contents[1]) == are_duplicates


def test_a_dataset_that_takes_too_long_is_too_slow_and_the_others_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "MAX_SECONDS", 0.3)
    slow = folder(tmp_path / "slow", {"a.csv": "text\n" + "x\n" * 3_000_000})
    parquet = folder(tmp_path / "parquet", {})
    (tmp_path / "parquet").mkdir()
    pq.write_table(pa.table({"text": ["some words"] * 300_000}), tmp_path / "parquet" / "a.parquet")
    good = folder(tmp_path / "good", DATA)
    plan = plan_ingest([slow, parquet, good], IngestParameters(max_rows=1_000_000))
    metadata = [metadata_of(shard.build(None)) for shard in plan.shards]
    assert [[rejection["reason"] for rejection in one["rejected"]] for one in metadata] == [
        ["too_slow"], ["too_slow"], []]  # fmt: skip
    assert [one["kept"] for one in metadata] == [0, 0, 1]
    assert [bool(one["provisional"]) for one in metadata] == [True, True, False]  # another day it may be faster


def test_sparse_files_take_no_memory(tmp_path):
    files = {"a.csv": b"text\nx\n", "README.md": b"---\nlicense: mit\n", "dataset_infos.json": b"{"}
    source = folder(tmp_path, files)
    for name in files:
        os.truncate(tmp_path / name, 2**27)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert rejections(source) == [("malformed", 0)]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100_000  # KB


def test_a_local_folder_is_read_without_the_network_and_leaves_no_cache(tmp_path, monkeypatch):
    import socket

    import datasets.config

    def no_network(*_):
        raise AssertionError("a request was sent")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for name in ("a.txt", "a.csv", "a.parquet", "a.xml"):
        source = folder(tmp_path / name, {name: as_parquet([{"a": "b"}]) if name == "a.parquet" else "a\nb\n"})
        assert rows(source)
    assert not (tmp_path / "cache").exists()
