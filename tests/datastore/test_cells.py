import datetime
import decimal
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.datastore.cells import content_hash, flatten_row, row_json, worth_embedding
from rebase.text import list_items

anything = st.text(st.characters(codec=None, exclude_categories=()), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | anything | st.binary(max_size=4) | st.dates()
    | st.datetimes() | st.times() | st.timedeltas() | st.decimals(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(anything, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(anything, values, max_size=5), st.dictionaries(anything, st.just(["no", "yes"]), max_size=3))
def test_any_row_becomes_clean_text(row, label_names):
    cells = flatten_row(row, label_names)
    for column, text in cells.items():
        assert text
        assert text == text.strip()
        assert "\x00" not in text + column
        (text + column).encode()
    assert json.loads(row_json(cells)) == cells
    assert len(content_hash(cells)) == 64


def test_nested_values_are_flattened_and_labels_named():
    row = {
        "label": 1,
        "unknown": -1,
        "meta": {"source": {"name": "a book"}, "labels": [0, 1]},
        "items": [{"kind": 0, "text": "first"}, {"kind": 1, "text": None}],
    }
    names = ["neg", "pos"]
    label_names = {"label": names, "unknown": names, "meta.labels": names, "items.kind": ["ka", "kb"]}
    assert flatten_row(row, label_names) == {
        "label": "pos",
        "meta.source.name": "a book",
        "meta.labels": "neg; pos",
        "items": "kind: ka, text: first; kind: kb",
    }


@pytest.mark.parametrize(
    ("value", "cells"),
    [
        (1.0, {"label": "pos"}),
        ("1.0", {"label": "pos"}),
        ([0.0, "1", "0.00"], {"label": "neg; pos; neg"}),
        (-1.0, {}),
        ("-1.0", {}),
        (float("nan"), {}),
        (0.5, {"label": "0.5"}),
        ("0.5", {"label": "0.5"}),
    ],
)
def test_a_column_of_labels_has_floats_if_a_label_is_missing(value, cells):
    assert flatten_row({"label": value}, {"label": ["neg", "pos"]}) == cells
    assert flatten_row({"label": "1.0"}, {"label": ["1.0", "2.0"]}) == {"label": "1.0"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (0, "0"),
        (12.0, "12"),
        (-0.0, "0"),
        (1234567.5, "1234567.5"),
        (3.14159265358979, "3.14159265358979"),
        (1e22, "1e+22"),
        (float("inf"), "inf"),
        (decimal.Decimal("1.10"), "1.10"),
        (datetime.date(2020, 1, 2), "2020-01-02"),
        (datetime.datetime(2020, 1, 2, 3, 4), "2020-01-02T03:04:00"),
        ("  spaced \x00 ", "spaced"),
        ("half \ud800 pair", "half \ufffd pair"),
        (["a", "b;c", ["d"]], "a; b;c; d"),
        (["a", None, "", ["b"]], '["a", "", "", "b"]'),
        (["über; x\ny", "b\x00"], '["über; x\\ny", "b"]'),
        ([["p", "q"], ["r"]], '["p; q", "r"]'),
        (["[1, 2]"], '["[1, 2]"]'),
    ],
)
def test_a_value_is_kept_whole(value, text):
    assert flatten_row({"c": value}, {}) == {"c": text}


@pytest.mark.parametrize(
    "value",
    [None, "", " \n", float("nan"), b"\x89PNG", [], {}, [None, ""], {"bytes": b"\x89PNG", "path": "cat.png"},
     [{"bytes": None, "path": "cat.png"}], {"array": [0.5], "path": "a.wav", "sampling_rate": 8000}],
)  # fmt: skip
def test_empty_binary_and_media_values_are_left_out(value):
    assert flatten_row({"c": value}, {}) == {}


@given(st.lists(st.text(st.sampled_from("ab;, []\"'\\\n\x00é") | st.characters(codec=None), max_size=6), min_size=1))
def test_each_item_of_a_list_keeps_its_place(items):
    cells = flatten_row({"c": items}, {})
    clean = [flatten_row({"c": item}, {}).get("c", "") for item in items]
    assert list_items(cells.get("c", "")) == (clean if any(clean) else [""])


def test_a_column_without_a_name_gets_one():
    assert flatten_row({"": "x", " ": "y", "unnamed": "z"}, {}) == {"unnamed": "x", "unnamed'": "y", "unnamed''": "z"}


def test_columns_that_flatten_to_one_name_are_both_kept():
    assert sorted(flatten_row({"a.b": "one", "a": {"b": "two"}}, {}).values()) == ["one", "two"]


def test_duplicates_have_one_hash_whatever_their_columns_are_called():
    assert content_hash({"a": "x", "b": "y"}) == content_hash({"q": "x", "p": "y"})
    assert content_hash({"a": "x", "b": "y"}) != content_hash({"a": "xy"})
    assert content_hash({"a": "x", "b": "y"}) != content_hash({"a": "x\x1fy"})


@pytest.mark.parametrize(
    "text",
    ["https://example.org/a?b=c", "0123456789abcdef", "a1b2c3d4-e5f6-7890-abcd-ef1234567890", "42", "3.14",
     "2020-01-02", "!!", "", "A", "(b)", " C. ", "['A', 'B', 'C']", "c ) d )", "B; D",
     '["A", "", "c"]', '["https://example.org/a", "", ""]', '["", "0123456789abcdef"]'],
)  # fmt: skip
def test_noise_is_not_embedded(text):
    assert not worth_embedding(text)


@pytest.mark.parametrize(
    "text",
    [
        "entailment",
        "see https://example.org",
        "日本",
        "鯨",
        "日a",
        "no",
        "x = 1",
        "R&B",
        "I am",
        "(A)21; (B)30",
        '["", "blue"]',
    ],
)
def test_words_are_embedded(text):
    assert worth_embedding(text)
