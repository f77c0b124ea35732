import json
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.datastore.annoy_index import annoy_index_name
from rebase.datastore.cells import worth_embedding
from rebase.datastore.segments import Segment
from rebase.datastore.shards import Shards, metadata_of, with_metadata
from rebase.datastore.vectors import DESCRIPTION, vectors_of
from rebase.errors import RebaseError
from rebase.parameters import IndexParameters
from rebase.pipelines.index.nodes import build_segment, plan_annoy_index, plan_index, summarize_index

PARAMETERS = IndexParameters(trees=5, seed=1)


@pytest.fixture(scope="module", autouse=True)
def short_segments():
    """Segments of about three datasets, as in the fixture `datastore`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rebase.pipelines.index.nodes.SEGMENT_DATASETS", 3)
        yield


def segments(index):
    return {name: Segment.from_table(index[name]) for name in index}


def test_the_index_holds_every_cell_of_every_row(datastore):
    index, rows, vectors = (datastore.load(name) for name in ("index", "rows", "vectors"))
    seen = []
    for segment in segments(index).values():
        for position, dataset in enumerate(segment.datasets):
            seen.append(dataset)
            first = segment.dataset_start[position]
            for number, row in enumerate(rows[dataset]["row"].to_pylist(), start=first):
                cells = slice(segment.row_start[number], segment.row_start[number + 1])
                columns = [segment.columns[dataset][column] for column in segment.cell_column[cells]]
                assert sorted(columns) == sorted(
                    column for column, text in json.loads(row).items() if worth_embedding(text)
                )
                texts = segment.cell_text[cells] - segment.text_start[position]
                places = [vectors[dataset]["rows"][text].as_py() for text in texts.tolist()]
                assert all(number - first in of_text for of_text in places)
            assert segment.dataset_start[position + 1] - first == rows[dataset].num_rows
    assert seen == sorted(rows)
    assert len(index) > 1


def test_descriptions_are_those_that_were_embedded(datastore):
    vectors = datastore.load("vectors")
    for segment in segments(datastore.load("index")).values():
        for name, description in zip(segment.datasets, segment.descriptions, strict=True):
            place = next(n for n, rows in enumerate(vectors[name]["rows"].to_pylist()) if DESCRIPTION in rows)
            np.testing.assert_array_equal(description, vectors_of(vectors[name])[place])


def test_the_summary_adds_up(datastore):
    summary, index = datastore.load("index_summary"), segments(datastore.load("index"))
    assert summary["in"] == summary["kept"] == sum(segment.rows for segment in index.values())
    assert summary["texts"] == sum(len(segment.codes) for segment in index.values())
    assert summary["cells"] == sum(len(segment.cell_text) for segment in index.values())
    assert summary["segments"] == len(index)
    assert summary["trees"] == 5


names = st.sets(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8), min_size=1, max_size=40)


@given(names, st.text("xyz", min_size=9, max_size=12))
def test_a_new_dataset_changes_one_segment(names, new):
    def plan(datasets):
        shards = Shards(dict.fromkeys(datasets, "f"), lambda *_: None)
        return {shard.fingerprint for shard in plan_index(shards).shards}

    before, after = plan(names), plan(names | {new})
    # Its run becomes one other, or two where it ends one.
    assert len(before - after) <= 1
    assert 1 <= len(after - before) <= 2


def test_another_vector_shard_tree_or_seed_makes_anew_what_it_touches(datastore):
    index, vectors = datastore.load("index"), datastore.load("vectors")
    again = {shard.name: shard.fingerprint for shard in plan_index(vectors).shards}
    assert again == dict(index.fingerprints)
    changed = Shards(dict(vectors.fingerprints) | {"trade": "new"}, vectors.read)
    after = {shard.name: shard.fingerprint for shard in plan_index(changed).shards}
    assert sum(after[name] != fingerprint for name, fingerprint in again.items()) == 1

    def annoy_indexes(**changes):
        plan = plan_annoy_index(index, vectors, PARAMETERS.model_copy(update=changes))
        return {(shard.name, shard.fingerprint) for shard in plan.shards}

    assert {name for name, _ in annoy_indexes()} == {annoy_index_name(index, name) for name in index}
    assert annoy_indexes() == set(datastore.load("annoy_index").fingerprints.items())
    assert annoy_indexes(trees=0) == set()
    assert not annoy_indexes() & (annoy_indexes(trees=6) | annoy_indexes(seed=2))


def test_encoders_are_never_mixed(datastore):
    index, vectors = datastore.load("index"), datastore.load("vectors")
    other = with_metadata(vectors["trade"], metadata_of(vectors["trade"]) | {"encoder": "other@1"})
    with pytest.raises(RebaseError, match=r"'other@1' those of trade.*embed"):
        build_segment({"animals": vectors["animals"], "trade": other})
    mixed = Shards(index.fingerprints, partial(_other_encoder, index, next(iter(index))))
    with pytest.raises(RebaseError, match="several encoders"):
        summarize_index(mixed, datastore.load("annoy_index"), PARAMETERS)


def _other_encoder(index, changed, name, fingerprint):
    table = index[name]
    return with_metadata(table, metadata_of(table) | {"encoder": "other@1"}) if name == changed else table


def test_nothing_to_index_is_an_error(datastore):
    with pytest.raises(RebaseError, match="no vectors"):
        plan_index(Shards({}, datastore.load("vectors").read))


def test_a_dataset_without_rows_or_cells_keeps_its_place(datastore):
    vectors = datastore.load("vectors")
    segment = build_segment({name: vectors[name] for name in ("broken", "numbers")})
    assert segment.datasets == ["broken", "numbers"]
    assert segment.dataset_start.tolist() == [0, 0, 2]
    assert segment.row_start.tolist() == [0, 0, 0]
