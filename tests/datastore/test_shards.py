import pandas as pd
import pyarrow as pa
import pytest

from rebase.datastore.shards import Shards, metadata_of, provisional_digest, with_metadata
from rebase.errors import RebaseError


def test_shards_are_read_in_name_order_when_asked_for():
    read = []

    def read_one(name, fingerprint):
        read.append(name)
        return pa.table({"name": [name]})

    shards = Shards({"b": "1", "a": "2"}, read_one)
    assert list(shards) == ["a", "b"]
    assert len(shards) == 2
    assert read == []
    assert shards["b"]["name"].to_pylist() == ["b"]
    assert read == ["b"]
    with pytest.raises(KeyError):
        shards["c"]


def test_metadata_travels_with_the_table():
    table = pa.table({"a": [1]})
    assert not provisional_digest(table)
    assert metadata_of(with_metadata(table, {"n": 1, "s": "é"})) == {"n": 1, "s": "é"}
    assert provisional_digest(with_metadata(table, {"provisional": "abc"})) == "abc"
    assert not provisional_digest(with_metadata(table, {"provisional": ""}))


def test_cards_belong_to_their_rows():
    rows = Shards({"a": "1"}, dict)
    cards = pd.DataFrame()
    rows.check_cards(cards)  # those of an earlier version do not have it
    cards.attrs["made_of"] = rows.digest
    rows.check_cards(cards)
    with pytest.raises(RebaseError, match=r"The cards, .* not made of the rows in data/rows.*--pipelines=ingest"):
        Shards({"a": "1", "b": "2"}, dict, folder="data/rows").check_cards(cards)
