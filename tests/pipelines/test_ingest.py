import datetime
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rebase.datasets import ShardStore
from rebase.errors import RebaseError
from rebase.parameters import IngestParameters
from rebase.pipelines.ingest.nodes import plan_ingest, summarise_ingest
from rebase.records import ROW_COLUMNS
from rebase.shards import metadata_of
from rebase.sources import find_sources


def run(raw, work, max_rows=1000):
    """Ingest a folder of datasets: the stored rows, and what summarise_ingest says of them."""
    store = ShardStore(str(work))
    store.save(plan_ingest(find_sources([f"{raw}/*"]), IngestParameters(max_rows=max_rows)))
    rows = store.load()
    return rows, *summarise_ingest(rows)


def cells(rows, name):
    return [json.loads(row) for row in rows[name]["row"].to_pylist()]


def label_card(config="train"):
    label = {"class_label": {"names": {"0": "neg", "1": "pos"}}}
    info = [{"config_name": config, "features": [{"name": "label", "dtype": label}]}]
    return f"---\ndataset_info: {json.dumps(info)}\n---\nLabels.\n"


def parquet(columns):
    def write(file):
        pq.write_table(pa.table(columns), file)

    return write


def half_of_a_file(file):
    parquet({"a": [f"text {number}" for number in range(5000)]})(file)
    file.write_bytes(file.read_bytes()[:-100])


MOMENT = datetime.datetime(2020, 1, 2, 3, 4, tzinfo=datetime.UTC)
#: For each dataset its files, the cells that are kept, and the refusals by (config, reason, rows).
NASTY = {
    "corrupt": ({"a.parquet": "PAR1 no", "b.csv": "a\nx\n"}, [{"a": "x"}], {("a", "malformed", 0)}),
    "half": ({"a.parquet": half_of_a_file}, [], {("a", "malformed", 0)}),
    "ragged": ({"a.csv": "a,b\n1,2\n1,2,3,4\n"}, [], {("a", "malformed", 0)}),
    "latin": ({"a.csv": "a\ncafé\n".encode("latin-1")}, [], {("a", "malformed", 0)}),
    "empty-files": (
        {"a.csv": "", "b.jsonl": "", "c.parquet": ""},
        [],
        {("a", "malformed", 0), ("b", "malformed", 0), ("c", "malformed", 0)},
    ),
    "header-only": ({"a.csv": "a,b\n"}, [], {("a", "no_rows", 0)}),
    "no-data": ({"README.md": "# Nothing here"}, [], {("", "no_data_files", 0)}),
    "broken-card": ({"README.md": "---\nlicense: [mit\n---\nx", "a.csv": "a\nx\n"}, [{"a": "x"}], set()),
    "wrong-features": (
        {"README.md": "---\ndataset_info:\n  features: [{name: a, dtype: nonsense}]\n---\n", "a.csv": "a\nx\n"},
        [],
        {("a", "malformed", 0)},
    ),
    "nulls": ({"a.parquet": parquet({"n": pa.nulls(3), "t": ["x", None, " "]})}, [{"t": "x"}], {("a", "empty_row", 2)}),
    "unnamed": ({"a.csv": ",a\n0,x\n"}, [{"Unnamed: 0": "0", "a": "x"}], set()),
    "same-names": ({"a.csv": "a,a\nx,y\n"}, [{"a": "x", "a.1": "y"}], set()),
    "mixed": (
        {"a.jsonl": '{"a": 1}\n{"a": "b\\"c"}\n{"a": [1, {"d": "e"}]}\n{"a": null}\n'},
        [{"a": "1"}, {"a": 'b"c'}, {"a": "1; d: e"}],
        {("a", "empty_row", 1)},
    ),
    "nested": (
        {"a.jsonl": '{"a": {"b": {"c": "x"}, "l": [["p", "q"], []]}, "m": [{"k": 1}, {"k": 2}]}\n'},
        [{"a.b.c": "x", "a.l": "p; q", "m": "k: 1; k: 2"}],
        set(),
    ),
    "media": (
        {"a.parquet": parquet({"image": [{"bytes": b"\x89", "path": "cat.png"}], "raw": [b"\x00"], "t": ["a cat"]})},
        [{"t": "a cat"}],
        set(),
    ),
    "only-media": (
        {"a.parquet": parquet({"image": [{"bytes": b"\x89", "path": "cat.png"}]})},
        [],
        {("a", "empty_row", 1)},
    ),
    "dates": (
        {"a.parquet": parquet({"day": [MOMENT.date()], "at": [MOMENT], "x": [1234567.5], "n": [2.0], "ok": [True]})},
        [{"day": "2020-01-02", "at": "2020-01-02T03:04:00+00:00", "x": "1234567.5", "n": "2", "ok": "true"}],
        set(),
    ),
    "labels": ({"README.md": label_card(), "train.csv": "label\n1\n0\n"}, [{"label": "pos"}, {"label": "neg"}], set()),
    "two-formats": ({"data.csv": "a\nx\n", "data.jsonl": '{"a": "y"}\n'}, [{"a": "x"}, {"a": "y"}], set()),
    "traversal": (
        {
            "README.md": "---\nconfigs:\n- {config_name: up, data_files: ../secret.csv}\n"
            "- {config_name: ok, data_files: a.csv}\n---\n",
            "a.csv": "a\nx\n",
        },
        [{"a": "x"}],
        {("up", "malformed", 0)},
    ),
}


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    """Every nasty dataset, ingested beside the others."""
    raw = tmp_path_factory.mktemp("raw")
    (raw / "secret.csv").write_text("a\nsecret\n")
    for name, (files, _, _) in NASTY.items():
        for file, content in files.items():
            (raw / name).mkdir(exist_ok=True)
            if callable(content):
                content(raw / name / file)
            else:
                (raw / name / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    return run(raw, tmp_path_factory.mktemp("work"))


@pytest.mark.parametrize("name", NASTY)
def test_a_nasty_dataset_is_read_or_refused_with_its_reason(nasty, name):
    _, expected, refusals = NASTY[name]
    rows = nasty[0]
    metadata = metadata_of(rows[name])
    assert cells(rows, name) == expected
    assert {(r["config"], r["reason"], r["rows"]) for r in metadata["refused"]} == refusals
    assert all(refusal["detail"] for refusal in metadata["refused"] if not refusal["rows"])
    assert metadata["in"] == metadata["kept"] + sum(refusal["rows"] for refusal in metadata["refused"])


def test_nothing_is_lost_in_the_summary(nasty):
    _, cards, refused, summary = nasty
    assert summary["in"] == summary["kept"] + sum(summary["refused"].values())
    assert summary["kept"] == sum(len(expected) for _, expected, _ in NASTY.values()) == cards["rows_kept"].sum()
    assert summary["datasets"] == len(cards) == len(NASTY)
    unread = {name for name, (_, _, refusals) in NASTY.items() if any(rows == 0 for _, _, rows in refusals)}
    assert set(summary["datasets_unread"]) == unread == set(refused.loc[refused["rows"] == 0, "dataset"])
    json.dumps(summary)


def test_tables_have_their_columns(nasty):
    rows, cards, _, _ = nasty
    assert set(rows["mixed"].column_names) == set(ROW_COLUMNS)
    assert {"dataset", "description", "licence", "languages", "revision", "rows_in", "rows_kept"} <= set(cards.columns)


def test_a_wide_table_is_read(tmp_path):
    (tmp_path / "raw" / "wide").mkdir(parents=True)
    frame = pd.DataFrame([[f"v{number}" for number in range(1700)]], columns=[f"c{number}" for number in range(1700)])
    frame.to_parquet(tmp_path / "raw" / "wide" / "a.parquet")
    rows, *_ = run(tmp_path / "raw", tmp_path / "work")
    assert len(cells(rows, "wide")[0]) == 1700


def test_types_that_change_late_in_a_file_lose_nothing(tmp_path):
    (tmp_path / "raw" / "late").mkdir(parents=True)
    lines = [*map(str, range(11_000)), *["word"] * 11_000]
    (tmp_path / "raw" / "late" / "a.csv").write_text("a\n" + "\n".join(lines) + "\n")
    rows, _, _, summary = run(tmp_path / "raw", tmp_path / "work", max_rows=100)
    assert summary["in"] == 22_000
    assert summary["refused"] == {"not_sampled": 21_900}
    table = rows["late"].to_pandas()
    assert [json.loads(row)["a"] for row in table["row"]] == [lines[position] for position in table["row_index"]]
    assert {"0", "word"} <= {json.loads(row)["a"] for row in table["row"]}


def test_rows_say_where_they_come_from(tmp_path):
    raw = tmp_path / "raw" / "d"
    raw.mkdir(parents=True)
    (raw / "README.md").write_text("---\nlicense: mit\nconfigs:\n- {config_name: c, data_files: a.csv}\n---\nAbout.\n")
    (raw / "a.csv").write_text("q,a\n" + "".join(f"q{number},a{number}\n" for number in range(10)))
    rows, cards, _, _ = run(tmp_path / "raw", tmp_path / "work", max_rows=4)
    line = rows["d"].to_pylist()[1]
    assert line["row_index"] > 0
    assert line["row_id"] == f"d/c/train/{line['row_index']}"
    assert json.loads(line["row"]) == {"q": f"q{line['row_index']}", "a": f"a{line['row_index']}"}
    assert (line["config"], line["split"], line["licence"]) == ("c", "train", "mit")
    assert line["revision"] == cards["revision"][0] != ""
    assert cards["description"][0] == "About."


def times(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("*.parquet")}


def test_only_what_changed_is_read_again(tmp_path):
    raw = tmp_path / "raw"
    for name in ("a", "b"):
        (raw / name).mkdir(parents=True)
        (raw / name / "x.csv").write_text(f"a\n{name}\n")
    before, *_ = run(raw, tmp_path / "work")
    written = times(tmp_path / "work")
    (raw / "b" / "README.md").write_text("---\nlicense: mit\n---\n")
    after, *_ = run(raw, tmp_path / "work")
    assert after.fingerprints["a"] == before.fingerprints["a"]
    assert after.fingerprints["b"] != before.fingerprints["b"]
    assert len(written.items() & times(tmp_path / "work").items()) == 1
    assert after["b"]["licence"].to_pylist() == ["mit"]
    assert run(raw, tmp_path / "work", max_rows=1)[0].fingerprints["a"] != after.fingerprints["a"]


def test_no_row_at_all_is_an_error_that_says_why(tmp_path):
    (tmp_path / "raw" / "hollow").mkdir(parents=True)
    with pytest.raises(RebaseError, match=r"no row was kept from 1 datasets.*hollow: no_data_files"):
        run(tmp_path / "raw", tmp_path / "work")


def test_the_pipeline_writes_all_it_promises(datastore):
    assert datastore.load("ingest_summary")["datasets"] == 8
    assert datastore.load("ingest_summary")["datasets_unread"] == ["broken"]
    assert set(datastore.load("cards")["dataset"]) == set(datastore.load("rows"))
    assert datastore.load("ingest_refused")["dataset"].tolist() == ["broken"]
