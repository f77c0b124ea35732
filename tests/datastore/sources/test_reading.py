"""Every format: compressed, in shards, with a card, and with a broken file among others."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from itertools import product

import pyarrow as pa
import pyarrow.ipc
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from rebase.datastore.sources import FolderSource
from rebase.errors import RebaseError
from tests.datastore.folders import as_parquet, card, folder, ingested, read, rejections, rows


def as_arrow(part, new=pa.ipc.new_stream):
    table, stream = pa.Table.from_pylist(part), io.BytesIO()
    with new(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


BINARY = {
    "parquet": as_parquet,
    "arrow": as_arrow,
    "footer.arrow": lambda part: as_arrow(part, pa.ipc.new_file),
}
PACKED = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
ROWS = [{"text": "One, two", "note": "007"}, {"text": "Three\nfour", "note": "NA"}, {"text": "Fünf", "note": "no"}]
SHARDS = {1: ["train.{}"], 2: ["data/train-00000-of-00002.{}", "data/train-00001-of-00002.{}"]}


def as_csv(part, separator=","):
    quoted = [[f'"{cell}"' for cell in row.values()] for row in part]
    return "".join(f"{separator.join(cells)}\n" for cells in [["text", "note"], *quoted]).encode()


TEXT = {
    "csv": as_csv,
    "tsv": lambda part: as_csv(part, "\t"),
    "jsonl": lambda part: "\n".join(map(json.dumps, part)).encode(),
    "ndjson": lambda part: "\r\n".join(map(json.dumps, part)).encode(),
    "json": lambda part: json.dumps(part, indent=2).encode(),
    "short.json": lambda part: json.dumps(part).encode(),
}


def zipped(files):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


@pytest.mark.parametrize("with_card", [False, True])
@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize(("suffix", "packing"), [*product(BINARY, [""]), *product(TEXT, ["", *PACKED, "zip"])])
def test_each_format_plain_compressed_sharded_and_with_a_card(tmp_path, suffix, packing, shards, with_card):
    parts = [ROWS] if shards == 1 else [ROWS[:1], ROWS[1:]]
    for part, pattern in zip(parts, SHARDS[shards], strict=True):
        name, content = pattern.format(suffix), {**BINARY, **TEXT}[suffix](part)
        if packing == "zip":
            folder(tmp_path, {f"{name}.zip": zipped({name: content})})
        else:
            folder(tmp_path, {f"{name}.{packing}".rstrip("."): PACKED.get(packing, bytes)(content)})
    if with_card:
        paths = [f"{pattern.format(suffix)}{'.' * bool(packing)}{packing}" for pattern in SHARDS[shards]]
        folder(tmp_path, {"README.md": card(f"configs: [{{config_name: mine, data_files: {json.dumps(paths)}}}]\n")})
    source = FolderSource(tmp_path)
    assert source.configs() == ["mine" if with_card else "default"]
    assert rows(source, *source.configs()) == ROWS


@pytest.mark.parametrize("suffix", TEXT)
def test_a_license_beside_the_data_of_an_archive_is_no_data(tmp_path, suffix):
    notes = {"LICENSE.txt": "Copyright, by us\n", "README.md": "# About, it\n", "docs/COPYING.md": "x", "NOTICE": "y"}
    source = folder(tmp_path, {"all.zip": zipped(notes | {f"data/rows.{suffix}": TEXT[suffix](ROWS)})})
    assert rows(source) == ROWS


def test_files_of_other_formats_in_an_archive_are_recorded(tmp_path):
    files = {"a.csv": "t\nx\n", "b/c.csv": "t\ny\n", "d.jsonl": '{"t": "z"}\n', "cat.svg": "<svg>"}
    source = folder(tmp_path, {"all.zip": zipped(files), "CHANGELOG.md": "x", "LICENSE.txt": "x", "COPYING.txt": "x"})
    assert read(source) == ([{"t": "x"}, {"t": "y"}], ["d.jsonl"])
    [rejection] = ingested(source)["rejected"]
    assert rejection["detail"].startswith("all.zip/d.jsonl: ")
    assert rejection["detail"].endswith("not read with the others, which are csv")


SPLITS = {"train.csv": "t\nx\n", "test.csv": "t\ny\n", "LICENSE.txt": "z\n"}


@pytest.mark.parametrize(
    "archives",
    [
        {"data.zip": SPLITS, "load": {}},
        {"data.zip": {f"{name.partition('.')[0]}/{name}": text for name, text in SPLITS.items()}},
        {"a.zip": {"train.csv": "t\nx\n"}, "b.zip": {"test.csv": "t\ny\n"}},
    ],
)
def test_of_an_archive_with_several_splits_one_is_read(tmp_path, archives):
    folder(tmp_path, {name: zipped(files) for name, files in archives.items()})
    for split, other, cell in ((None, ["test"], "x"), ("test", [], "y")):
        files, sample = FolderSource(tmp_path, split=split).read("default", 9)
        rows_and_splits = [row for _, row in sample.rows], files.split, files.other_splits
        assert rows_and_splits == ([{"t": cell}], split or "train", other)
        assert (sample.unread, files.other_files) == ([], [])
    with pytest.raises(RebaseError, match="there is no split 'dev'; there are train, test"):
        FolderSource(tmp_path, split="dev").read("default", 9)


def test_of_an_archive_that_the_library_reads_one_split_is_read(tmp_path):
    files = {"train.conll": "x\tA\n\n", "test.conll": "y\tA\n\n", "LICENSE.txt": "z\n"}
    assert rows(folder(tmp_path, {"data.zip": zipped(files)})) == [{"tokens": ["x"]}]


def test_text_beside_tables_or_archives_is_recorded(tmp_path):
    texts = {"notes.txt": "a\n", "more.txt": "b\n"}
    source = folder(tmp_path, {"data.zip": zipped({"a.csv": "t\nx\n"} | texts)} | texts)
    assert read(source) == ([{"t": "x"}], ["more.txt", "notes.txt"])
    assert source.read("default", 9)[0].other_files == ["more.txt", "notes.txt"]


def test_many_texts_beside_a_table_are_a_corpus(tmp_path):
    pages = {f"page{number}.txt": f"{number}\n" for number in range(6)}
    files = folder(tmp_path, pages | {"pages.csv": "t\nx\n"}).read("default", 9)[0]
    assert (files.module, len(files.paths), files.other_files) == ("text", 6, ["pages.csv"])


def test_files_of_no_split_in_an_archive_with_splits_are_recorded(tmp_path):
    source = folder(tmp_path, {"data.zip": zipped(SPLITS | {"more.csv": "t\nz\n"})})
    assert read(source) == ([{"t": "x"}], ["more.csv"])


@pytest.mark.parametrize("name", ["train.zip", "data.zip"])
def test_an_archive_of_a_split_is_read_to_its_end(tmp_path, name):
    declared = {"README.md": card(f"configs: [{{config_name: default, data_files: {name}}}]\n")}
    files = {name: zipped(SPLITS)} | (declared if name == "data.zip" else {"test.zip": zipped(SPLITS)})
    assert rows(folder(tmp_path, files)) == [{"t": "y"}, {"t": "x"}]


def test_a_broken_file_in_an_archive_does_not_affect_the_others(tmp_path):
    files = {"a.csv": "t\nx\n", "b.csv": bytes(range(128, 256)) * 10, "c.csv": "t\ny\n"}
    source = folder(tmp_path, {"data.zip": zipped(files)})
    assert read(source) == ([{"t": "x"}, {"t": "y"}], ["b.csv"])
    [rejection] = ingested(source)["rejected"]
    assert rejection["detail"].startswith("data.zip/b.csv: ValueError: the content is not text")


def test_an_archive_without_files_of_the_format_is_recorded(tmp_path):
    files = {"a.zip": zipped({"a.csv": "t\nx\n"}), "b.zip": zipped({"b": "t\ny\n", "LICENSE": "z"})}
    assert read(folder(tmp_path, files)) == ([{"t": "x"}], ["b.zip"])


def test_names_in_an_archive_lead_to_no_file_outside(tmp_path, monkeypatch):
    secret = zipped({"secret.csv": "t\nsecret\n"})
    folder(tmp_path, {"outside.zip": secret})
    monkeypatch.chdir(tmp_path)
    names = ["outside.zip", "secret.csv::outside.zip"]
    for number, files in enumerate([dict.fromkeys(names, "PK"), {"inner.zip": secret}]):
        source = folder(tmp_path / str(number), {"data.zip": zipped(files)})
        assert rejections(source) == [("no_data_files", 0)]
        source = folder(tmp_path / str(number), {"data.zip": zipped(files | {"a.csv": "t\nx\n"})})
        found, unread = read(source)
        assert (found, sorted(unread)) == ([{"t": "x"}], sorted(files))


def test_an_archive_whose_files_are_not_read_has_no_rows(tmp_path):
    """The library gives the path of the archive on this machine as a column."""
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        (tmp_path / "rows.jsonl").write_text('{"t": "z"}\n')
        archive.add(tmp_path / "rows.jsonl", "rows.jsonl")
    (tmp_path / "rows.jsonl").unlink()
    assert rejections(FolderSource(tmp_path)) == [("empty_row", 1)]


def test_lines_of_text_and_documents_are_rows(tmp_path):
    assert rows(folder(tmp_path / "t", {"a.txt": "One.\n\nTwo."})) == [{"text": "One."}, {"text": ""}, {"text": "Two."}]
    paragraphs = card("configs: [{config_name: default, data_files: a.txt, sample_by: paragraph}]\n")
    assert rows(folder(tmp_path / "t", {"README.md": paragraphs})) == [{"text": "One."}, {"text": "Two."}]
    assert rows(folder(tmp_path / "x", {"a.xml": "<a>b</a>"})) == [{"xml": "<a>b</a>"}]


def test_what_save_to_disk_wrote_is_read_with_the_names_of_labels(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["off", "on"])})
    dataset = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features)
    DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(tmp_path / "both")
    dataset.save_to_disk(tmp_path / "one")
    for name, splits in (("both", ["test"]), ("one", [])):
        files, sample = FolderSource(tmp_path / name).read("default", 10)
        assert [row for _, row in sample.rows] == [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
        assert (files.other_splits, files.other_files) == (splits, [])
        assert sample.label_names == {"label": ["off", "on"]}


def test_options_of_the_reader_in_a_card(tmp_path):
    source = folder(
        tmp_path,
        {
            "README.md": card("""configs:
- {config_name: semicolons, data_files: a.csv, sep: ';'}
- {config_name: spaces, data_files: b.csv, sep: '\\s+', names: [x, 1.0, no], comment: '#'}
- {config_name: quotes, data_files: c.csv, quotechar: "'", skiprows: 1, usecols: [b, 0]}
- {config_name: bare, data_files: d.csv, header: null, quoting: 3, encoding: cp1252}
- {config_name: field, data_files: e.json, field: rows, no_option: 1}
"""),
            "a.csv": "name;note\nA;one, two\n",
            "b.csv": "# about\n1  2 3\n4 5  6\n",
            "c.csv": "about\na,b\n1,'x,y'\n",
            "d.csv": '"caf\xe9,1\n'.encode("cp1252"),
            "e.json": '{"version": 1, "rows": [{"a": 1}, {"a": 2}]}',
        },
    )
    assert {config: rows(source, config) for config in source.configs()} == {
        "semicolons": [{"name": "A", "note": "one, two"}],
        "spaces": [{"x": "1", "1.0": "2", "no": "3"}, {"x": "4", "1.0": "5", "no": "6"}],
        "quotes": [{"b": "x,y", "a": "1"}],
        "bare": [{"0": '"caf\xe9', "1": "1"}],
        "field": [{"a": 1}, {"a": 2}],
    }


def test_a_missing_shard_and_a_broken_one_do_not_affect_the_others(tmp_path):
    source = folder(
        tmp_path,
        {
            "README.md": card("configs: [{config_name: default, data_files: [a.parquet, b.parquet, c.parquet]}]\n"),
            "a.parquet": as_parquet(ROWS),
            "b.parquet": as_parquet(ROWS)[:-9],
        },
    )
    assert read(source) == (ROWS, ["c.parquet", "b.parquet"])
    broken = gzip.compress(as_csv(ROWS * 2000))
    source = folder(tmp_path / "gz", {"a.csv.gz": broken[: len(broken) // 2], "b.csv.gz": gzip.compress(as_csv(ROWS))})
    found, unread = read(source, max_rows=10_000)
    assert (found[-3:], unread) == (ROWS, ["a.csv.gz"])
