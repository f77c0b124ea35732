import json

import numpy as np
import pytest

from rebase.cells import worth_embedding
from rebase.errors import RebaseError
from rebase.parameters import IndexParameters
from rebase.pipelines.embed.nodes import vectors_of
from rebase.pipelines.index.nodes import build_index, plant_forest
from rebase.shards import Shards, metadata_of, with_metadata


def test_the_index_holds_every_cell_of_every_row(datastore):
    index, rows = datastore.load("index"), datastore.load("rows")
    assert index.datasets == sorted(rows)
    assert index.rows == sum(rows[name].num_rows for name in rows)
    number, text_of_vector = 0, {}
    for position, name in enumerate(index.datasets):
        assert index.dataset_start[position] == number
        for row in rows[name]["row"].to_pylist():
            cells = slice(index.row_start[number], index.row_start[number + 1])
            columns = [index.columns[column] for column in index.cell_column[cells]]
            expected = {column: text for column, text in json.loads(row).items() if worth_embedding(text)}
            assert sorted(columns) == sorted(expected)
            for column, text in zip(columns, index.cell_text[cells].tolist(), strict=True):
                assert text_of_vector.setdefault(text, expected[column]) == expected[column]
            assert index.dataset_of(np.array([number])).tolist() == [position]
            number += 1
    # A text of two mirrors is there once.
    assert len(set(text_of_vector.values())) == len(text_of_vector)


def test_descriptions_and_vectors_are_those_that_were_embedded(datastore):
    index, vectors = datastore.load("index"), datastore.load("vectors")
    for name, description in zip(index.datasets, index.descriptions, strict=True):
        table = vectors[name]
        place = next(number for number, rows in enumerate(table["rows"].to_pylist()) if -1 in rows)
        np.testing.assert_array_equal(description, vectors_of(table)[place])
    digests = {digest for name in vectors for digest in vectors[name]["digest"].to_pylist()}
    assert len(index.vectors) == len(digests)


def test_the_summary_adds_up(datastore):
    summary, index = datastore.load("index_summary"), datastore.load("index")
    assert summary["in"] == summary["kept"] == index.rows
    assert (summary["texts"], summary["cells"]) == (len(index.vectors), len(index.cell_text))
    datastore.load("forest").check(index)


def test_the_fingerprint_follows_the_vectors(datastore):
    vectors = datastore.load("vectors")
    changed = Shards(dict(vectors.fingerprints) | {"trade": "new"}, vectors.read)
    assert build_index(changed).fingerprint != build_index(vectors).fingerprint
    forest, _ = plant_forest(build_index(vectors), IndexParameters(trees=1, seed=0))
    with pytest.raises(RebaseError, match="another index"):
        forest.check(build_index(changed))


def test_encoders_are_never_mixed(datastore):
    vectors = datastore.load("vectors")

    def read(name):
        table = vectors[name]
        return with_metadata(table, metadata_of(table) | {"encoder": "other@1"}) if name == "trade" else table

    with pytest.raises(RebaseError, match=r"trade was embedded with 'other@1'.*embed pipeline"):
        build_index(Shards(vectors.fingerprints, read))


def test_nothing_to_index_is_an_error(datastore):
    with pytest.raises(RebaseError, match="no vectors"):
        build_index(Shards({}, datastore.load("vectors").read))


def test_a_dataset_without_rows_or_cells_keeps_its_place(datastore):
    vectors = datastore.load("vectors")
    index = build_index(Shards({name: vectors.fingerprints[name] for name in ("broken", "numbers")}, vectors.read))
    assert index.datasets == ["broken", "numbers"]
    assert index.dataset_start.tolist() == [0, 0, 2]
    assert index.row_start.tolist() == [0, 0, 0]
    assert index.dataset_of(np.array([0, 1])).tolist() == [1, 1]
