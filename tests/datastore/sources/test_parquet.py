"""Parquet files: only what is needed is read, in bounded memory."""

from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from rebase.datastore.sources import parquet
from rebase.pipelines.ingest import nodes
from tests.datastore.folders import cells, reasons, run


def test_only_the_row_groups_and_columns_that_are_needed_are_read(tmp_path):
    (tmp_path / "raw" / "d").mkdir(parents=True)
    file = tmp_path / "raw" / "d" / "a.parquet"
    table = pa.table({"n": range(1000), "raw": [bytes(100)] * 1000})
    pq.write_table(table, file, row_group_size=10, compression="none", use_dictionary=False)
    chunk = pq.ParquetFile(file).metadata.row_group(7).column(0)
    broken = bytearray(file.read_bytes())
    broken[chunk.data_page_offset : chunk.data_page_offset + 8] = b"\xff" * 8
    for group in range(100):
        raw = pq.ParquetFile(file).metadata.row_group(group).column(1)
        broken[raw.data_page_offset : raw.data_page_offset + 8] = b"\xff" * 8
    file.write_bytes(broken)
    rows, *_ = run(tmp_path / "raw", tmp_path / "work", max_rows=5)
    assert rows["d"]["row_index"].to_pylist() == [0, 200, 400, 600, 800]
    assert cells(rows, "d") == [{"n": str(number)} for number in (0, 200, 400, 600, 800)]
    (tmp_path / "raw" / "other").mkdir()
    (tmp_path / "raw" / "other" / "a.csv").write_text("a\nx\n")
    rows, *_ = run(tmp_path / "raw", tmp_path / "work", max_rows=1000)
    assert reasons(rows, "d") == {("malformed", 0), ("malformed", 930)}


POOLS = []  # What was allocated from a pool must be freed before it, which nobody can promise.


@contextmanager
def watched_memory():
    """A pool that tells how much Arrow held at once."""
    usual = pa.default_memory_pool()
    POOLS.append(pa.proxy_memory_pool(usual))
    pa.set_memory_pool(POOLS[-1])
    try:
        yield POOLS[-1]
    finally:
        pa.set_memory_pool(usual)


def test_a_zip_bomb_is_rejected_in_bounded_memory(tmp_path, monkeypatch):
    (tmp_path / "raw" / "bomb").mkdir(parents=True)
    file = tmp_path / "raw" / "bomb" / "a.parquet"
    writer = pq.ParquetWriter(file, pa.schema([("t", pa.string())]), compression="zstd", use_dictionary=False)
    writer.write_table(pa.table({"t": ["small"] * 10}))
    writer.write_table(pa.table({"t": ["x" * 2_000_000] * 20}))
    writer.close()
    assert file.stat().st_size * 1000 < 40_000_000
    lists = pa.ListArray.from_arrays(pa.array([0, 5_000_000], pa.int32()), pa.array(bytes(5_000_000), pa.uint8()))
    (tmp_path / "raw" / "lists").mkdir()
    pq.write_table(pa.table({"n": lists}), tmp_path / "raw" / "lists" / "a.parquet")
    monkeypatch.setattr(parquet, "MAX_GROUP_BYTES", 10_000_000)
    with watched_memory() as pool:
        rows, *_ = run(tmp_path / "raw", tmp_path / "work")
    assert cells(rows, "bomb") == [{"t": "small"}] * 10
    assert reasons(rows, "bomb") == {("too_large", 20)}
    assert reasons(rows, "lists") == {("too_large", 1)}
    assert pool.max_memory() < 5_000_000


def test_a_long_text_that_is_stored_once_and_repeated_fills_no_memory(tmp_path, monkeypatch):
    (tmp_path / "raw" / "d").mkdir(parents=True)
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array(["long " * 20_000]))
    pq.write_table(pa.table({"t": repeated}), tmp_path / "raw" / "d" / "a.parquet")
    monkeypatch.setattr(nodes, "MAX_DATASET_BYTES", 250_000)
    with watched_memory() as pool:
        rows, *_ = run(tmp_path / "raw", tmp_path / "work", max_rows=50)
    assert rows["d"].num_rows == 2
    assert reasons(rows, "d") == {("too_large", 48), ("not_sampled", 99_950)}
    assert pool.max_memory() < 20_000_000  # Unpacked it is ten gigabytes.
