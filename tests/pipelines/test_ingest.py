import dataclasses
import datetime
import decimal
import json
import re
import shutil
import subprocess
import sys

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kedro.io import DatasetError

from rebase.datasets import CheckedParquet, ShardStore
from rebase.datastore.shards import metadata_of
from rebase.datastore.sources import HubSource, TooSlowError, find_sources
from rebase.errors import RebaseError, StageError
from rebase.parameters import IngestParameters
from rebase.pipelines.ingest import nodes
from rebase.pipelines.ingest.nodes import plan_ingest, summarize_ingest
from rebase.records import CARD_COLUMNS, ROW_COLUMNS
from tests.datastore.folders import cells, reasons, run
from tests.pipelines.conftest import write


def label_card(config="default"):
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


def no_utf8(file):
    broken = pa.array([b"\xffx"]).view(pa.string())
    nested = pa.ListArray.from_arrays([0, 2], pa.array([b"ok", b"\xff"]).view(pa.string()))
    pq.write_table(pa.table({"t": broken, "l": nested}), file)


TYPES = {
    "span": pa.array([86_401], pa.duration("s")),
    "clock": pa.array([datetime.time(3, 4)]),
    "clock_ns": pa.array([(3 * 60 + 4) * 60 * 10**9 + 1], pa.time64("ns")),
    "price": pa.array([decimal.Decimal("1.10")]),
    "word": pa.array(["often"]).dictionary_encode(),
    "pairs": pa.array([[("k", "v")]], pa.map_(pa.string(), pa.string())),
    "far": pa.array([316_516_464_000], pa.timestamp("s")),
    "sizes": pa.array([[1, 2]], pa.list_(pa.int8(), 2)),
    "raw": pa.array([b"abcd"], pa.binary(4)),
    "raws": pa.array([[b"x"]]),
    "sound": pa.array([{"array": [0.5], "path": "a.wav", "sampling_rate": 8000}]),
}
MOMENT = datetime.datetime(2020, 1, 2, 3, 4, tzinfo=datetime.UTC)
#: For each dataset its files, the cells that are kept, and the rejections by (reason, rows).
NASTY = {
    "corrupt": ({"a.parquet": "PAR1 no", "b.parquet": parquet({"a": ["x"]})}, [{"a": "x"}], {("malformed", 0)}),
    "half": ({"a.parquet": half_of_a_file}, [], {("malformed", 0)}),
    "ragged": (
        {"a.csv": 'a,b\n1,2\n\n3,4\n5\n1,2,3\n"x\ny",6\n1,2,3,4\n'},
        [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}, {"a": "5"}, {"a": "x\ny", "b": "6"}],
        {("malformed_row", 2)},
    ),
    "ragged-from-the-start": (
        {"a.csv": "a,b\n1,2,3\n1,2\n1,2,3,4\n", "b.csv": "c\nx,y\nz\n"},
        [{"a": "1", "b": "2"}, {"c": "z"}],
        {("malformed_row", 3)},
    ),
    "latin": ({"a.csv": "a\ncafé\n".encode("latin-1")}, [{"a": "caf\ufffd"}], set()),
    "latin-json": ({"a.jsonl": '{"a": "café"}\n'.encode("latin-1")}, [{"a": "caf\ufffd"}], set()),
    "empty-files": (
        {"a.csv": "", "b.csv": "a\nx\n"},
        [{"a": "x"}],
        set(),
    ),
    "empty-csv": ({"a.csv": ""}, [], {("no_rows", 0)}),
    "empty-json": ({"a.json": "\n \n"}, [], {("no_rows", 0)}),
    "empty-parquet": ({"a.parquet": " "}, [], {("malformed", 0)}),
    "header-only": ({"a.csv": "a,b\n"}, [], {("no_rows", 0)}),
    "no-data": ({"README.md": "# Nothing here", "a.bin": "a"}, [], {("no_data_files", 0)}),
    "broken-card": ({"README.md": "---\nlicense: [mit\n---\nx", "a.csv": "a\nx\n"}, [{"a": "x"}], set()),
    "wrong-features": (
        {
            "README.md": "---\ndataset_info:\n  features: [{name: a, dtype: nonsense}, {name: b, dtype: "
            "{class_label: {names: [no, 1.0]}}}]\n---\n",
            "a.csv": "a,b\nx,0\ny,1\n",
        },
        [{"a": "x", "b": "no"}, {"a": "y", "b": "1.0"}],
        set(),
    ),
    "nulls": ({"a.parquet": parquet({"n": pa.nulls(3), "t": ["x", None, " "]})}, [{"t": "x"}], {("empty_row", 2)}),
    "all-null": ({"a.parquet": parquet({"n": pa.nulls(3), "m": pa.nulls(3)})}, [], {("empty_row", 3)}),
    "unnamed": ({"a.csv": ",a\n0,x\n"}, [{"Unnamed: 0": "0", "a": "x"}], set()),
    "unnamed-parquet": ({"a.parquet": parquet({"": ["x"], " ": ["y"]})}, [{"unnamed": "x", "unnamed'": "y"}], set()),
    "same-names-parquet": (
        {"a.parquet": lambda file: pq.write_table(pa.table([["x"], ["y"], [b"z"]], ["a", "a", "a"]), file)},
        [{"a": "x", "a.1": "y"}],
        set(),
    ),
    "surrogates": (
        {"a.jsonl": b'{"a": "half \\ud83d pair"}\n'},
        [{"a": "half \ufffd pair"}],
        set(),
    ),
    "no-utf8": ({"b.parquet": no_utf8}, [{"t": "\ufffdx", "l": "ok; \ufffd"}], set()),
    "broken-lines": (
        {"a.jsonl": '{"a": 1}\n{"a": \n\n[1]\n{"a": "x"}\n', "b.jsonl": "no JSON\nat all\n"},
        [{"a": "1"}, {"a": "x"}],
        {("malformed_row", 4)},
    ),
    "deep": (
        {"a.jsonl": '{"a": "x"}\n{"a": ' + "[" * 500 + '"y"' + "]" * 500 + '}\n{"a": "z"}\n'},
        [{"a": "x"}, {"a": "z"}],
        {("malformed_row", 1)},
    ),
    "no-time-zone": (
        {"a.parquet": parquet({"at": pa.array([0, None], pa.timestamp("s", "Mars/Crater")), "t": ["x", "y"]})},
        [{"at": "1970-01-01T00:00:00+00:00", "t": "x"}, {"t": "y"}],
        set(),
    ),
    "same-names": ({"a.csv": "a,a\nx,y\n"}, [{"a": "x", "a.1": "y"}], set()),
    "mixed": (
        {"a.jsonl": '{"a": 1}\n{"a": "b\\"c"}\n{"a": [1, {"d": "e"}]}\n{"a": null}\n'},
        [{"a": "1"}, {"a": 'b"c'}, {"a": "1; d: e"}],
        {("empty_row", 1)},
    ),
    "nested": (
        {"a.jsonl": '{"a": {"b": {"c": "x"}, "l": [["p", "q"], []]}, "m": [{"k": 1}, {"k": 2}]}\n'},
        [{"a.b.c": "x", "a.l": '["p; q", ""]', "m": "k: 1; k: 2"}],
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
        {("empty_row", 1)},
    ),
    "dates": (
        {"a.parquet": parquet({"day": [MOMENT.date()], "at": [MOMENT], "x": [1234567.5], "n": [2.0], "ok": [True]})},
        [{"day": "2020-01-02", "at": "2020-01-02T03:04:00+00:00", "x": "1234567.5", "n": "2", "ok": "true"}],
        set(),
    ),
    "types": (
        {"a.parquet": parquet(TYPES)},
        [
            {
                "span": "1 day, 0:00:01",
                "clock": "03:04:00",
                "clock_ns": "03:04:00",
                "price": "1.10",
                "word": "often",
                "pairs": '["k; v"]',
                "far": "12000-01-04 00:00:00.000",
                "sizes": "1; 2",
            }
        ],
        set(),
    ),
    "labels": ({"README.md": label_card(), "train.csv": "label\n1\n0\n"}, [{"label": "pos"}, {"label": "neg"}], set()),
    "two-formats": (
        {"data.csv": "a\nx\n", "data.jsonl": '{"a": "y"}\n', "notes.txt": "two\nlines"},
        [{"a": "y"}],
        {("other_file", 0)},
    ),
    "traversal": (
        {
            "README.md": "---\nconfigs:\n- {config_name: up, data_files: ../secret.csv}\n"
            "- {config_name: ok, data_files: a.csv}\n---\n",
            "a.csv": "a\nx\n",
        },
        [{"a": "x"}],
        {("malformed", 0)},
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
def test_a_nasty_dataset_is_read_or_rejected_with_its_reason(nasty, name):
    _, expected, rejections = NASTY[name]
    rows = nasty[0]
    metadata = metadata_of(rows[name])
    assert cells(rows, name) == expected
    assert {(r["reason"], r["rows"]) for r in metadata["rejected"]} == rejections
    assert all(rejection["detail"] for rejection in metadata["rejected"] if not rejection["rows"])
    assert metadata["in"] == metadata["kept"] + sum(rejection["rows"] for rejection in metadata["rejected"])


def test_nothing_is_lost_in_the_summary(nasty):
    _, cards, rejected, summary = nasty
    assert summary["in"] == summary["kept"] + sum(summary["rejected"].values())
    assert summary["kept"] == sum(len(expected) for _, expected, _ in NASTY.values()) == cards["rows_kept"].sum()
    assert summary["datasets"] == len(cards) == len(NASTY)
    failures = {name: {reason for reason, rows in rejections if not rows} for name, (_, _, rejections) in NASTY.items()}
    assert set(summary["datasets_unread"]) == {name for name in failures if failures[name] - {"other_file"}}
    assert set(rejected.loc[rejected["rows"] == 0, "dataset"]) == {name for name in failures if failures[name]}
    json.dumps(summary)


def test_tables_have_their_columns(nasty):
    rows, cards, _, _ = nasty
    assert set(rows["mixed"].column_names) == set(ROW_COLUMNS)
    assert list(cards) == CARD_COLUMNS


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
    assert summary["rejected"] == {"not_sampled": 21_900}
    table = rows["late"].to_pandas()
    assert [json.loads(row)["a"] for row in table["row"]] == [lines[position] for position in table["row_index"]]
    assert {"0", "word"} <= {json.loads(row)["a"] for row in table["row"]}


def test_rows_have_their_provenance(tmp_path):
    raw = tmp_path / "raw" / "d"
    raw.mkdir(parents=True)
    (raw / "README.md").write_text("---\nlicense: mit\nconfigs:\n- {config_name: c, data_files: a.csv}\n---\nAbout.\n")
    (raw / "a.csv").write_text("q,a\n" + "".join(f"q{number},a{number}\n" for number in range(10)))
    rows, cards, _, _ = run(tmp_path / "raw", tmp_path / "work", max_rows=4)
    line = rows["d"].to_pylist()[1]
    assert line["row_index"] > 0
    assert line["row_id"] == f"d/c/train/{line['row_index']}"
    assert json.loads(line["row"]) == {"q": f"q{line['row_index']}", "a": f"a{line['row_index']}"}
    assert (line["config"], line["split"], line["license"]) == ("c", "train", "mit")
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
    assert after["b"]["license"].to_pylist() == ["mit"]
    assert run(raw, tmp_path / "work", max_rows=1)[0].fingerprints["a"] != after.fingerprints["a"]


def test_duplicates_are_stored_once_and_named(tmp_path):
    raw = tmp_path / "raw"
    files = {"a": "text.csv", "b": "other-name.csv", "c": "text.csv", "d": "text.csv"}
    for name, file in files.items():
        (raw / name).mkdir(parents=True)
        (raw / name / file).write_text("a\nx\n" if name != "d" else "a\ny\n")
    (raw / "b" / "README.md").write_text("---\nlicense: mit\n---\nThe same, again.")
    rows, cards, rejected, summary = run(raw, tmp_path / "work")
    assert {name: rows[name].num_rows for name in rows} == {"a": 1, "b": 0, "c": 0, "d": 1}
    assert dict(zip(cards["dataset"], cards["duplicate_of"], strict=True)) == {"a": "", "b": "a", "c": "a", "d": ""}
    assert dict(zip(cards["dataset"], cards["duplicates"], strict=True)) == {"a": "b, c", "b": "", "c": "", "d": ""}
    assert cards.set_index("dataset").loc["b", ["license", "description"]].tolist() == ["mit", "The same, again."]
    assert rejected["reason"].tolist() == ["duplicate", "duplicate"]
    assert (summary["in"], summary["kept"], summary["duplicates"], summary["datasets_unread"]) == (2, 2, 2, [])
    written = times(tmp_path / "work")
    shutil.rmtree(raw / "a")
    rows, cards, *_ = run(raw, tmp_path / "work", remove=True)
    assert (rows["b"].num_rows, rows["c"].num_rows) == (1, 0)
    assert cards["duplicate_of"].tolist() == ["", "b", ""]
    assert len(written.items() & times(tmp_path / "work").items()) == 1


def test_many_files_that_fail_are_one_line_without_the_path_of_this_machine(tmp_path):
    (tmp_path / "raw" / "d" / "data").mkdir(parents=True)
    for number in range(5):
        (tmp_path / "raw" / "d" / "data" / f"{number}.parquet").write_text(f"PAR1 {number}")
    parquet({"a": ["x"]})(tmp_path / "raw" / "d" / "good.parquet")
    rows, _, rejected, _ = run(tmp_path / "raw", tmp_path / "work")
    assert cells(rows, "d") == [{"a": "x"}]
    [detail] = rejected["detail"]
    assert detail.startswith("data/0.parquet: ArrowInvalid: ")
    assert detail.endswith(" (and 4 more files)")


def test_labels_of_the_card_tell_copies_apart(tmp_path):
    for name, card in (("named", label_card()), ("numbered", "No labels.")):
        (tmp_path / "raw" / name).mkdir(parents=True)
        (tmp_path / "raw" / name / "train.csv").write_text("label\n1\n")
        (tmp_path / "raw" / name / "README.md").write_text(card)
    rows, *_ = run(tmp_path / "raw", tmp_path / "work")
    assert [cells(rows, name) for name in rows] == [[{"label": "pos"}], [{"label": "1"}]]


def test_validation_and_test_splits_are_not_read_and_recorded(tmp_path):
    raw = tmp_path / "raw" / "d"
    for file in ("train.csv", "test.csv", "dev.csv", "fr/valid-00000-of-00001.csv", "more.csv"):
        (raw / file).parent.mkdir(parents=True, exist_ok=True)
        (raw / file).write_text(f"a\n{file}\n")
    rows, _, rejected, summary = run(tmp_path / "raw", tmp_path / "work")
    assert [(row["config"], row["split"], json.loads(row["row"])["a"]) for row in rows["d"].to_pylist()] == [
        ("default", "train", "train.csv")]  # fmt: skip
    assert rejected["detail"].tolist() == [
        "only train is read, not validation, test",
        "not read with the others: more.csv",
    ]
    assert (summary["in"], summary["kept"], summary["datasets_unread"]) == (1, 1, [])


def test_a_dataset_that_vanishes_is_tried_again(tmp_path):
    raw = tmp_path / "raw"
    for name in ("early", "late", "stays"):
        (raw / name).mkdir(parents=True)
        (raw / name / "a.csv").write_text(f"a\n{name}\n")
    store = ShardStore(str(tmp_path / "work"))
    sources = find_sources([f"{raw}/*"])
    shutil.rmtree(raw / "early")
    plan = plan_ingest(sources, IngestParameters(max_rows=10))
    (raw / "late" / "a.csv").unlink()
    store.save(plan)
    rows = store.load()
    assert reasons(rows, "early") == {("unreadable", 0)}
    assert reasons(rows, "late") == {("no_data_files", 0)}
    assert cells(rows, "stays") == [{"a": "stays"}]
    assert metadata_of(rows["early"])["provisional"]


def test_what_was_not_read_today_changes_the_fingerprint_only_if_the_rows_or_the_card_change(tmp_path, monkeypatch):
    """Vectors and index are built again if the fingerprint changes, and only then."""
    raw = tmp_path / "raw" / "d"
    raw.mkdir(parents=True)
    for config in "abc":
        (raw / f"{config}.csv").write_text(f"text\nrow of {config}\n")
    (raw / "README.md").write_text(
        "---\nconfigs:\n" + "".join(f"- {{config_name: {config}, data_files: {config}.csv}}\n" for config in "abc")
        + "---\nAbout.")  # fmt: skip
    read_config, seen = nodes._read_config, []
    for run_number, too_slow in enumerate(["b", "b", "c", "-"]):

        def read(source, config, *arguments, limit=too_slow, detail=run_number):
            if config == limit:
                raise TooSlowError(f"too slow, request {detail}")
            return read_config(source, config, *arguments)

        monkeypatch.setattr(nodes, "_read_config", read)
        rows, *_ = run(tmp_path / "raw", tmp_path / "work")
        seen.append((rows.fingerprints["d"], len(rows["d"])))
    assert [count for _, count in seen] == [1, 1, 2, 3]
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3


def test_the_same_failure_in_other_words_changes_no_fingerprint(monkeypatch):
    """The hub's errors name the request: a dataset that is gone must not be embedded and indexed in every run."""
    source, fingerprints = HubSource("owner/gone", None, None), set()
    for request in (1, 2):

        def fail(_, request=request):
            raise ConnectionError(f"Request ID {request}: gone")

        monkeypatch.setattr(HubSource, "fingerprint", fail)
        [shard] = plan_ingest([source], IngestParameters(max_rows=10)).shards
        assert metadata_of(shard.build(None))["rejected"][0]["detail"].endswith(f"{request}: gone")
        fingerprints.add(shard.fingerprint)
    assert len(fingerprints) == 1


def test_forgotten_sources_remove_nothing(tmp_path):
    """A changed setting, a new duplicate and an unreadable dataset remove nothing either: they stop no run."""
    raw = tmp_path / "raw"
    for name in ("bees", "cats", "dogs"):
        (raw / name).mkdir(parents=True)
        (raw / name / "a.csv").write_text(f"a\nof {name}\nmore {name}\n")
    run(raw, tmp_path / "work")
    shutil.copytree(raw / "cats", raw / "a-copy-of-cats")
    (raw / "dogs" / "a.csv").unlink()
    rows, *_ = run(raw, tmp_path / "work", max_rows=1)
    assert [len(rows[name]) for name in ("a-copy-of-cats", "bees", "cats", "dogs")] == [1, 1, 0, 0]
    before = rows.fingerprints
    shutil.rmtree(raw / "bees")
    with pytest.raises(DatasetError, match=r"names 1 of its 4 datasets, which would be removed: bees\. "):
        run(raw, tmp_path / "work")
    assert ShardStore(str(tmp_path / "work")).load().fingerprints == before
    assert set(run(raw, tmp_path / "work", remove=True)[0]) == set(before) - {"bees"}


def test_a_cell_of_ten_megabytes_is_kept_whole(tmp_path):
    long = "tale " * 2_000_000
    for name in ("csv", "jsonl", "parquet"):
        (tmp_path / "raw" / name).mkdir(parents=True)
    (tmp_path / "raw" / "csv" / "a.csv").write_text(f"a\n{long}1\n")
    (tmp_path / "raw" / "jsonl" / "a.jsonl").write_text(json.dumps({"a": f"{long}2"}))
    parquet({"a": [f"{long}3"]})(tmp_path / "raw" / "parquet" / "a.parquet")
    rows, *_ = run(tmp_path / "raw", tmp_path / "work")
    assert [cells(rows, name) for name in rows] == [[{"a": f"{long}{number}"}] for number in (1, 2, 3)]


def test_a_link_out_of_the_folder_is_rejected(tmp_path):
    (tmp_path / "raw" / "d").mkdir(parents=True)
    (tmp_path / "secret.csv").write_text("a\nsecret\n")
    (tmp_path / "secret.md").write_text("---\nlicense: mit\n---\nSecret.")
    (tmp_path / "raw" / "d" / "README.md").symlink_to(tmp_path / "secret.md")
    (tmp_path / "raw" / "d" / "link.csv").symlink_to(tmp_path / "secret.csv")
    (tmp_path / "raw" / "d" / "gone.csv").symlink_to(tmp_path / "nowhere.csv")
    (tmp_path / "raw" / "d" / "a.csv").write_text("a\nx\n")
    rows, *_ = run(tmp_path / "raw", tmp_path / "work")
    assert cells(rows, "d") == [{"a": "x"}]
    assert reasons(rows, "d") == {("malformed", 0)}
    assert metadata_of(rows["d"])["card"]["license"] == "unknown"


def test_odd_names_stay_inside_the_store(tmp_path):
    names = ["x..%2F..", "~", " ", "a\nb", "ü" * 100, "-rf", "d?x=1&y"]
    for name in names:
        (tmp_path / "raw" / name).mkdir(parents=True)
        (tmp_path / "raw" / name / "a.csv").write_text(f"a\nin {names.index(name)}\n")
    rows, *_ = run(tmp_path / "raw", tmp_path / "work")
    assert {name: cells(rows, name) for name in rows} == {
        name: [{"a": f"in {number}"}] for number, name in enumerate(names)}  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "work"]


def test_no_row_at_all_is_an_error_that_says_why(tmp_path):
    (tmp_path / "raw" / "hollow").mkdir(parents=True)
    with pytest.raises(StageError, match=r"no row was kept from 1 datasets.*hollow: no_data_files") as error:
        run(tmp_path / "raw", tmp_path / "work")
    assert list(error.value.rejected["reason"]) == ["no_data_files"]


def test_the_pipeline_writes_all_it_promises(datastore):
    assert datastore.load("ingest_summary")["datasets"] == 9
    assert datastore.load("ingest_summary")["datasets_unread"] == ["broken"]
    assert set(datastore.load("cards")["dataset"]) == set(datastore.load("rows"))
    assert datastore.load("ingest_rejected")["dataset"].tolist() == ["broken"]


def test_cards_that_a_killed_run_left_are_noticed_and_the_next_run_makes_them_again(tmp_path):
    """The run ends after the rows are stored, before the cards are."""
    raw, work = tmp_path / "raw", tmp_path / "work"
    saved = CheckedParquet(filepath=str(tmp_path / "cards.parquet"))
    write(raw / "first", "Texts.", "mit", [{"text": "some words"}])
    saved.save(run(raw, work)[1])
    write(raw / "second", "The same texts.", "cc-by-nc-4.0", [{"text": "some words"}])
    rows, cards, *_ = run(raw, work)
    with pytest.raises(RebaseError, match="--pipelines=ingest"):
        rows.check_cards(saved.load())
    saved.save(cards)
    run(raw, work)[0].check_cards(saved.load())


IN_A_NEW_PROCESS = """
import json, sys
from rebase.datasets import ShardStore
from rebase.datastore.sources import find_sources
from rebase.parameters import IngestParameters
from rebase.pipelines.ingest.nodes import plan_ingest, summarize_ingest

store = ShardStore(sys.argv[2])
store.save(plan_ingest(find_sources([sys.argv[1] + "/*"]), IngestParameters(max_rows=10)))
cards, rejected, _ = summarize_ingest(store.load())
print(json.dumps([cards["rows_kept"].tolist(), rejected[["dataset", "config", "reason"]].values.tolist()]))
"""


def test_a_bad_dataset_among_good_ones_is_one_rejection_in_a_new_process(tmp_path):
    """Threads that import the `datasets` library at once fail, so ingest imports it before they start."""
    card = "---\nconfigs:\n- {config_name: default, data_files: missing.csv}\n---\n"
    for name, files in {
        "a-good": {"train.jsonl": '{"text": "one"}\n'},
        "b-bad": {"README.md": card, "there.csv": "text\nthere\n"},
        "c-good": {"train.jsonl": '{"text": "two"}\n'},
    }.items():
        for file, content in files.items():
            (tmp_path / "raw" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "raw" / name / file).write_text(content)
    done = subprocess.run(
        [sys.executable, "-c", IN_A_NEW_PROCESS, str(tmp_path / "raw"), str(tmp_path / "rows")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == [[1, 0, 1], [["b-bad", "default", "no_data_files"]]]


def test_rows_of_an_earlier_version_are_read_again_and_one_line_says_so(tmp_path, monkeypatch, caplog):
    (tmp_path / "raw" / "d").mkdir(parents=True)
    (tmp_path / "raw" / "d" / "a.csv").write_text("a\nx\n")
    monkeypatch.setattr(nodes, "_VERSION", "3")
    earlier, *_ = run(tmp_path / "raw", tmp_path / "work")
    monkeypatch.undo()
    # Manifests of earlier versions have the shards only, and their files no checksum.
    for file in (tmp_path / "work").glob("*.parquet"):
        file.rename(file.with_name(re.sub(r"-[0-9a-f]{16}\.parquet$", ".parquet", file.name)))
    (tmp_path / "work" / "manifest.json").write_text(json.dumps(dict(earlier.fingerprints)))
    assert dict(ShardStore(str(tmp_path / "work")).load().fingerprints) == dict(earlier.fingerprints)
    with caplog.at_level("INFO"):
        rows, *_ = run(tmp_path / "raw", tmp_path / "work")
    assert rows.fingerprints["d"] != earlier.fingerprints["d"]
    assert [record.message for record in caplog.records if "1 of 1 shards are rebuilt" in record.message]


def test_a_stages_seconds_are_those_of_its_own_run(tmp_path):
    (tmp_path / "raw" / "d").mkdir(parents=True)
    (tmp_path / "raw" / "d" / "a.csv").write_text("a\nx\n")
    store = ShardStore(str(tmp_path / "work"))
    plan = plan_ingest(find_sources([f"{tmp_path}/raw/*"]), IngestParameters(max_rows=10))
    store.save(dataclasses.replace(plan, seconds=70.0))
    assert 70 <= summarize_ingest(store.load())[2]["seconds"] < 75
    store.save(dataclasses.replace(plan, seconds=0.0))
    assert summarize_ingest(store.load())[2]["seconds"] < 5
