"""Rows of tables as Python objects, whatever the table's values and names of columns are."""

import datetime
import json
import time

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from rebase.datastore.sources.rows import distinct, rows_of
from tests.datastore.folders import folder, rows


def test_columns_of_mixed_types_are_decoded(tmp_path):
    lines = [{"a": 1, "b": {"c": 1}, "l": [1]}, {"a": 'x"y', "b": {"c": "z"}, "l": ["p", {"q": 2}]}, {"a": None}]
    source = folder(tmp_path, {"m.jsonl": "\n".join(map(json.dumps, lines))})
    assert [row["a"] for row in rows(source, "default")] == [1, 'x"y', None]
    assert [row.get("b") for row in rows(source, "default")] == [{"c": 1}, {"c": "z"}, None]
    assert [row.get("l") for row in rows(source, "default")] == [[1], ["p", {"q": 2}], None]


def test_many_columns_of_one_name_are_read(tmp_path):
    count = 20_000
    source = folder(tmp_path, {"a.csv": ",".join(["c"] * count) + "\n" + ",".join(["v"] * count) + "\n"})
    began = time.monotonic()
    [row] = rows(source, "default")
    assert time.monotonic() - began < 10
    assert len(row) == count


@given(st.lists(st.sampled_from(["a", "a.1", "a.1.1", "a.2", "b", ""])))
def test_repeated_names_of_columns_become_distinct_and_others_stay(names):
    result = distinct(names)
    assert len(result) == len(set(result)) == len(names)
    for name, new in zip(names, result, strict=True):
        assert new == name or new.startswith(f"{name}.")
    assert {name for name in names if names.count(name) == 1} <= set(result)
    assert [new for place, new in enumerate(result) if names[place] not in names[:place]] == list(dict.fromkeys(names))


@given(st.integers(0, 100), st.integers(1, 50))
def test_all_rows_of_a_table_come_in_order(count, size):
    batches = [range(start, min(count, start + size)) for start in range(0, count, size)]
    table = pa.table({"n": pa.chunked_array(batches, pa.int64())})
    assert list(rows_of(table)) == [{"n": number} for number in range(count)]


@given(st.floats(width=32) | st.none(), st.floats(width=16) | st.none())
def test_a_number_has_the_digits_that_it_was_written_with(single, half):
    table = pa.table(
        {
            "single": pa.array([single], pa.float32()),
            "half": pa.array([half], pa.float16()),
            "list": pa.array([[single, 0.1]], pa.list_(pa.float32())),
            "pair": pa.array([[single, 4.3]], pa.list_(pa.float32(), 2)),
            "struct": pa.array([{"score": single}], pa.struct({"score": pa.float32()})),
            "double": pa.array([single]),
        }
    )
    [row] = rows_of(table)
    written = None if single is None else float(str(np.float32(single)))
    expected = {
        "single": written,
        "half": None if half is None else float(str(np.float16(half))),
        "list": [written, 0.1],
        "pair": [written, 4.3],
        "struct": {"score": written},
        "double": single,
    }
    assert repr(row) == repr(expected)  # NaN is not equal to itself


def test_values_that_python_does_not_have_are_text_and_the_others_stay():
    moments = pa.array([0, 316_516_464_000, None], pa.timestamp("s"))
    broken = pa.array([b"ok", b"\xff"]).view(pa.string())
    table = pa.table(
        {
            "at": moments,
            "nested": pa.StructArray.from_arrays([moments], ["at"]),
            "texts": pa.ListArray.from_arrays([0, 1, 2, 2], broken),
        }
    )
    epoch, far = datetime.datetime(1970, 1, 1), "12000-01-04 00:00:00"
    assert list(rows_of(table)) == [
        {"at": epoch, "nested": {"at": epoch}, "texts": ["ok"]},
        {"at": far, "nested": {"at": far}, "texts": ["\ufffd"]},
        {"at": None, "nested": {"at": None}, "texts": []},
    ]
