import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest

from rebase.datasets import ShardStore
from rebase.datastore.cells import worth_embedding
from rebase.datastore.encoder import Encoder
from rebase.datastore.shards import Shards, metadata_of, with_metadata
from rebase.datastore.vectors import vectors_of
from rebase.parameters import EmbedParameters
from rebase.pipelines.embed.nodes import plan_embed, summarize_embed

PARAMETERS = EmbedParameters(batch_tokens=64, cells="text")


def rows_of(contents, version="1"):
    """Stored rows as ingest leaves them: for each dataset its rows' cells."""

    def read(name, _fingerprint):
        table = pa.table({"row": pa.array([json.dumps(row) for row in contents[name]], pa.string())})
        return with_metadata(table, {"card": {"dataset": name, "description": f"About {name}."}})

    return Shards({name: f"{version}{name}" for name in contents}, read)


def test_every_distinct_text_has_one_unit_vector(datastore, encoder):
    vectors = datastore.load("vectors")
    rows = datastore.load("rows")
    with encoder.open() as opened:
        for name in vectors:
            table, metadata = vectors[name], metadata_of(vectors[name])
            matrix = vectors_of(table)
            assert matrix.dtype == np.float16
            np.testing.assert_allclose(np.linalg.norm(matrix.astype(float), axis=1), 1, atol=3e-4)
            assert table.num_rows == metadata["texts"]
            cells = [json.loads(row) for row in rows[name]["row"].to_pylist()]
            cells.append({"": metadata_of(rows[name])["card"]["description"]})  # at -1: DESCRIPTION
            texts = []
            for places in zip(table["rows"].to_pylist(), table["columns"].to_pylist(), strict=True):
                cell_texts = {cells[row][metadata["columns"][column]] for row, column in zip(*places, strict=True)}
                assert len(cell_texts) == 1
                texts += cell_texts
            exact, stored = opened.encode(texts).vectors.astype(float), matrix.astype(float)
            assert ((exact * stored).sum(axis=1) / np.linalg.norm(stored, axis=1)).min() >= 0.9999998


def test_all_cells_are_counted(datastore):
    rows = datastore.load("rows")
    cells = [text for name in rows for row in rows[name]["row"].to_pylist() for text in json.loads(row).values()]
    summary = datastore.load("embed_summary")
    assert summary["in"] == len(cells) == summary["kept"] + sum(summary["rejected"].values())
    assert summary["kept"] == sum(map(worth_embedding, cells))


def times(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("*.parquet")}


def plan_of(rows, encoder, parameters):
    return plan_embed(rows, encoder, parameters)


def test_only_a_changed_dataset_is_embedded_again(tmp_path, encoder):
    store = ShardStore(str(tmp_path))
    contents = {"a": [{"t": "one text"}, {"t": "one text"}], "b": [{"t": "another", "n": "7"}], "none": []}
    store.save(plan_of(rows_of(contents), encoder, PARAMETERS))
    before = times(tmp_path)
    assert metadata_of(store.load()["a"])["cells"] == 2
    assert store.load()["a"].num_rows == 2  # the description and one text
    assert store.load()["none"].num_rows == 1

    changed = rows_of(contents)
    changed = dataclasses.replace(changed, fingerprints=dict(changed.fingerprints) | {"b": "new"})
    store.save(plan_of(changed, encoder, PARAMETERS))
    assert len(before.items() & times(tmp_path).items()) == 2
    assert summarize_embed(store.load())["rejected"] == {"not_text": 1}


def test_the_encoder_is_opened_only_where_something_is_missing(tmp_path, encoder):
    def must_not_open():
        raise AssertionError("opened")

    store = ShardStore(str(tmp_path))
    rows = rows_of({"a": [{"t": "one text"}]})
    store.save(plan_of(rows, encoder, PARAMETERS))
    store.save(dataclasses.replace(plan_of(rows, encoder, PARAMETERS), opener=must_not_open))
    other = Encoder("owner/other", None, tmp_path)
    with pytest.raises(Exception, match="opened"):
        store.save(dataclasses.replace(plan_of(rows, other, PARAMETERS), opener=must_not_open))


def build(contents, encoder, parameters=PARAMETERS):
    """The one shard of vectors of a dataset."""
    (shard,) = plan_of(rows_of({"a": contents}), encoder, parameters).shards
    with encoder.open() as opened:
        return shard.build(opened)


@pytest.mark.parametrize(("cells", "embedded", "skipped"), [("text", 2, 3), ("all", 5, 0)])
def test_the_rule_says_which_cells_are_embedded(encoder, cells, embedded, skipped):
    contents = [{"t": "one text", "id": "7", "url": "https://example.org/a"}, {"t": "one text", "id": "7"}]
    table = build(contents, encoder, EmbedParameters(batch_tokens=64, cells=cells))
    metadata = metadata_of(table)
    assert (metadata["cells"], metadata["skipped"]) == (embedded, skipped)
    assert table.num_rows == metadata["texts"] == (2 if cells == "text" else 4)


def test_places_are_kept_over_many_rows(encoder):
    contents = [{"label": "yes" if n % 3 else "no", "other": "yes"} for n in range(2_500)]
    table = build(contents, encoder)
    columns = metadata_of(table)["columns"]
    places_by_text = {
        frozenset((row, columns[column]) for row, column in zip(*places, strict=True))
        for places in zip(table["rows"].to_pylist(), table["columns"].to_pylist(), strict=True)
    }
    yes = {(n, "label") for n in range(2_500) if n % 3} | {(n, "other") for n in range(2_500)}
    no = {(n, "label") for n in range(2_500) if not n % 3}
    assert places_by_text == {frozenset(yes), frozenset(no), frozenset({(-1, "")})}


def test_truncated_texts_are_counted_once_each(tmp_path, encoder):
    store = ShardStore(str(tmp_path))
    long = "otter " * 300
    store.save(plan_of(rows_of({"a": [{"t": long}, {"t": long}, {"t": "short"}]}), encoder, PARAMETERS))
    assert metadata_of(store.load()["a"])["truncated"] == 1
    assert summarize_embed(store.load())["truncated"] == 1


def test_the_fingerprint_changes_exactly_when_the_vectors_may(encoder, tmp_path):
    def fingerprint(version="1", encoder=encoder, **changes):
        (shard,) = plan_of(rows_of({"a": []}, version), encoder, PARAMETERS.model_copy(update=changes)).shards
        return shard.fingerprint

    assert fingerprint() == fingerprint(batch_tokens=9)
    others = [
        fingerprint(),
        fingerprint(version="2"),
        fingerprint(cells="all"),
        fingerprint(encoder=Encoder("owner/name", None, tmp_path)),
        fingerprint(encoder=Encoder("owner/name", "abc", tmp_path)),
    ]
    assert len(set(others)) == len(others)


def test_a_datastore_of_an_earlier_version_is_read(encoder):
    """Its shards of vectors have no `dtype`."""
    rows = rows_of({"a": [{"t": "one text"}]})
    (shard,) = plan_embed(rows, encoder, PARAMETERS).shards
    with encoder.open() as opened:
        table = shard.build(opened)
    metadata = {name: value for name, value in metadata_of(table).items() if name != "dtype"}
    earlier = Shards({"a": "f"}, lambda *_: with_metadata(table, metadata))
    assert summarize_embed(earlier)["dtype"] == "not recorded"
    assert vectors_of(earlier["a"]).shape == (2, 384)
