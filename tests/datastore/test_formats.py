"""Files as people have them: every format, compressed, in shards, with a card, and with the oddities of the world."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
from itertools import product

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from rebase.datastore.sources import FolderSource, HubSource, text_files
from rebase.datastore.sources.reading import read_file
from rebase.errors import RebaseError
from tests.datastore.folders import folder

ROWS = [{"text": "One, two", "note": "007"}, {"text": "Three\nfour", "note": "NA"}, {"text": "Fünf", "note": "no"}]


def read(source, config="default", max_rows=1000):
    """The rows, with the reason instead of one that is malformed, and the files that were not read."""
    _, sample = source.read(config, max_rows)
    return [row for _, row in sample.rows], [path.rpartition("/")[2] for path, _ in sample.unread]


def rows(source, config="default"):
    found, unread = read(source, config)
    assert unread == []
    return found


def card(front):
    return f"---\n{front}---\nText.\n"


# ---------------------------------------------------------------------------------------------------- every format


def as_csv(part, separator=","):
    quoted = [[f'"{cell}"' for cell in row.values()] for row in part]
    return "".join(f"{separator.join(cells)}\n" for cells in [["text", "note"], *quoted]).encode()


def as_parquet(part):
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(part), stream)
    return stream.getvalue()


def as_arrow(part, new=pa.ipc.new_stream):
    table, stream = pa.Table.from_pylist(part), io.BytesIO()
    with new(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


def zipped(content, name):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, content)
    return stream.getvalue()


BINARY = {
    "parquet": as_parquet,
    "arrow": as_arrow,
    "footer.arrow": lambda part: as_arrow(part, pa.ipc.new_file),
}
TEXT = {
    "csv": as_csv,
    "tsv": lambda part: as_csv(part, "\t"),
    "jsonl": lambda part: "\n".join(map(json.dumps, part)).encode(),
    "ndjson": lambda part: "\r\n".join(map(json.dumps, part)).encode(),
    "json": lambda part: json.dumps(part, indent=2).encode(),
    "short.json": lambda part: json.dumps(part).encode(),
}
PACKED = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
SHARDS = {1: ["train.{}"], 2: ["data/train-00000-of-00002.{}", "data/train-00001-of-00002.{}"]}


@pytest.mark.parametrize("with_card", [False, True])
@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize(("suffix", "packing"), [*product(BINARY, [""]), *product(TEXT, ["", *PACKED, "zip"])])
def test_each_format_plain_compressed_sharded_and_with_a_card(tmp_path, suffix, packing, shards, with_card):
    parts = [ROWS] if shards == 1 else [ROWS[:1], ROWS[1:]]
    for part, pattern in zip(parts, SHARDS[shards], strict=True):
        name, content = pattern.format(suffix), {**BINARY, **TEXT}[suffix](part)
        if packing == "zip":
            folder(tmp_path, {f"{name}.zip": zipped(content, name)})
        else:
            folder(tmp_path, {f"{name}.{packing}".rstrip("."): PACKED.get(packing, bytes)(content)})
    if with_card:
        paths = [f"{pattern.format(suffix)}{'.' * bool(packing)}{packing}" for pattern in SHARDS[shards]]
        folder(tmp_path, {"README.md": card(f"configs: [{{config_name: mine, data_files: {json.dumps(paths)}}}]\n")})
    source = FolderSource(tmp_path)
    assert source.configs() == ["mine" if with_card else "default"]
    assert rows(source, *source.configs()) == ROWS


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


def test_files_about_the_data_are_no_data(tmp_path):
    line = '{"text": "a row"}\n'
    source = folder(
        tmp_path,
        {
            "data/train.jsonl": line,
            "dataset_infos.json": json.dumps({"x": {"features": {"text": {"dtype": "string", "_type": "Value"}}}}),
            ".ipynb_checkpoints/train-checkpoint.jsonl": line,
            ".cache/huggingface/state.json": "{}",
        },
    )
    assert rows(source) == [{"text": "a row"}]
    assert source.read("default", 9)[0].other_files == []


def test_features_of_an_old_version_of_the_library_name_labels(tmp_path):
    features = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}
    source = folder(
        tmp_path, {"a.jsonl": '{"label": 1}', "dataset_infos.json": json.dumps({"x": {"features": features}})}
    )
    assert source.read("default", 9)[1].label_names == {"label": ["neg", "pos"]}


# ------------------------------------------------------------------------------------------------------------ cards


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


def test_configs_by_folder_beside_configs_by_files(tmp_path):
    source = folder(
        tmp_path,
        {
            "README.md": card(
                "configs:\n- {config_name: easy, data_dir: one}\n- {config_name: hard, data_files: two/*}\n"
            ),
            "one/train.jsonl": '{"q": "a"}',
            "one/test.jsonl": '{"q": "b"}',
            "two/x.csv": "q\nc\n",
        },
    )
    assert {config: rows(source, config) for config in source.configs()} == {"easy": [{"q": "a"}], "hard": [{"q": "c"}]}


@pytest.mark.parametrize(
    ("names", "written"),
    [
        ("{'0': no, '1': yes}", ["no", "yes"]),
        ("{0: 1, 1: 2.50}", ["1", "2.50"]),
        ("[null, off]", ["null", "off"]),
        ("[1_0, 12:30:45]", ["1_0", "12:30:45"]),
        ("[2020-01-02, 010]", ["2020-01-02", "010"]),
    ],
)
def test_names_of_labels_are_as_written(tmp_path, names, written):
    front = f"dataset_info: {{features: [{{name: label, dtype: {{class_label: {{names: {names}}}}}}}]}}\n"
    source = folder(tmp_path, {"README.md": card(front), "a.jsonl": '{"label": 1}'})
    assert source.read("default", 9)[1].label_names == {"label": written}


def test_other_fields_of_a_card_are_as_written(tmp_path):
    front = "license: 1.10\nlanguage: [no, en]\nconfigs:\n- {config_name: on, data_files: 1_0.csv}\n"
    source = folder(tmp_path, {"README.md": card(front), "1_0.csv": "a\nx\n"})
    assert source.configs() == ["on"]
    assert rows(source, "on") == [{"a": "x"}]
    assert source.card().languages == ("no", "en")


def test_an_unknown_type_in_a_card_costs_nothing_but_itself(tmp_path):
    features = "[{name: a, dtype: nonsense}, {name: label, dtype: {class_label: {names: [x, y]}}}, {no: name}]"
    source = folder(
        tmp_path, {"README.md": card(f"dataset_info: {{features: {features}}}\n"), "a.csv": "a,label\n1,0\n"}
    )
    assert rows(source) == [{"a": "1", "label": "0"}]
    assert source.read("default", 9)[1].label_names == {"label": ["x", "y"]}


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


def test_a_card_that_makes_a_billion_names_out_of_ten_is_read(tmp_path):
    levels = "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9))
    front = f"a: &a [x, y]\n{levels}license: mit\nnames: *j\n"
    source = folder(tmp_path, {"README.md": card(front), "a.csv": "a\nx\n"})
    assert source.card().license == "mit"
    assert rows(source) == [{"a": "x"}]


# -------------------------------------------------------------------------------------------------------------- CSV


def test_cells_are_the_text_of_the_file_and_only_an_empty_cell_is_missing(tmp_path):
    text = 'a,b\nNA,None\nnull,nan\n01001,3.10\nTrue,1e5\n,N/A\n"",x\n'
    pairs = [("NA", "None"), ("null", "nan"), ("01001", "3.10"), ("True", "1e5"), (None, "N/A"), (None, "x")]
    expected = [{"a": first, "b": second} for first, second in pairs]
    assert rows(folder(tmp_path, {"train.csv": text})) == expected
    assert read_file(tmp_path / "train.csv") == expected
    (tmp_path / "train.tsv").write_text(text.replace(",", "\t"))
    assert read_file(tmp_path / "train.tsv") == expected


@pytest.mark.parametrize("first", [True, False])
def test_a_row_with_too_many_cells_is_rejected_wherever_it_is(tmp_path, first):
    odd, good = "x,y,z\n", "1,2\n3,4\n"
    source = folder(tmp_path, {"a.csv": "a,b\n" + (odd + good if first else good + odd)})
    expected = [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    assert rows(source) == (["malformed_row", *expected] if first else [*expected, "malformed_row"])
    with pytest.raises(RebaseError, match=f"row {0 if first else 2}: malformed_row"):
        read_file(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b\n1,2,\n3,4,\n", [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]),  # A separator at each line's end.
        ("a,b\n0,1,2\n1,3,4\n", [{"Unnamed: 0": "0", "a": "1", "b": "2"}, {"Unnamed: 0": "1", "a": "3", "b": "4"}]),
        ("a,b\n1\n\n2,3\n", [{"a": "1", "b": None}, {"a": "2", "b": "3"}]),
        ("a,a,\n1,2,3\n", [{"a": "1", "a.1": "2", "Unnamed: 2": "3"}]),
        ("a\r1\r2\r", [{"a": "1"}, {"a": "2"}]),
        ('a,b\n1,"open\n2,3\n', [{"a": "1", "b": "open\n"}, {"a": "2", "b": "3"}]),
        ("", []),
    ],
)
def test_odd_csv(tmp_path, text, expected):
    assert rows(folder(tmp_path, {"a.csv": text})) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize(
    ("name", "text"), [("a.csv", "a,é\n1,Ω\n"), ("a.jsonl", '{"a": "1", "é": "Ω"}\n'), ("a.txt", "é")]
)
def test_encodings_are_detected(tmp_path, encoding, name, text):
    expected = [{"text": "é"}] if name == "a.txt" else [{"a": "1", "é": "Ω"}]
    if name == "a.txt" and encoding in ("utf-16-le", "utf-16-be"):
        pytest.skip("one letter is not enough to tell")
    assert rows(folder(tmp_path, {name: text.encode(encoding)})) == expected


# ------------------------------------------------------------------------------------------------------------- JSON

SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "T",
            "paragraphs": [
                {"context": "C", "qas": [{"id": "1", "question": "Q?", "answers": [{"text": "A", "answer_start": 0}]}]},
                {"context": "D", "qas": [{"id": "2", "question": "R?", "answers": []}]},
            ],
        }
    ],
}


def test_questions_of_squads_file_are_rows(tmp_path):
    expected = [
        {"title": "T", "context": "C", "id": "1", "question": "Q?", "answers": {"text": ["A"], "answer_start": [0]}},
        {"title": "T", "context": "D", "id": "2", "question": "R?", "answers": []},
    ]
    for number, text in enumerate([json.dumps(SQUAD), json.dumps(SQUAD, indent=1)]):
        assert rows(folder(tmp_path / str(number), {"train-v1.1.json": text})) == expected
    assert read_file(tmp_path / "0" / "train-v1.1.json") == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([{"a": 1}, {"b": 2}], [{"a": 1}, {"b": 2}]),
        (["x", "y"], [{"text": "x"}, {"text": "y"}]),
        ({"note": "n", "examples": [{"a": 1}, {"a": 2}]}, [{"note": "n", "a": 1}, {"note": "n", "a": 2}]),
        ({"a": {"0": 1, "1": 2}, "b": {"0": 3, "1": 4}}, [{"a": 1, "b": 3}, {"a": 2, "b": 4}]),
        ({"a": [1, 2], "b": [3, 4]}, [{"a": 1, "b": 3}, {"a": 2, "b": 4}]),
        ({"a": 1, "b": {"c": [1, 2]}}, [{"a": 1, "b": {"c": [1, 2]}}]),
        ({"data": [{"a": [{"role": "user"}]}]}, [{"a": {"role": ["user"]}}]),
        ([], []),
        (1, ["malformed_row"]),
    ],
)
def test_a_file_of_one_json_value(tmp_path, value, expected):
    assert rows(folder(tmp_path, {"a.json": json.dumps(value, indent=1)})) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": {"0": 1}, "b": [{"c": 1}]}\n', [{"a": {"0": 1}, "b": [{"c": 1}]}]),  # One row of JSON Lines.
        ('{"a": 1}\n{"a": \n{"a": 3}\n', [{"a": 1}, "malformed_row", {"a": 3}]),
        ('{"a": \n{"a": 2}\n{"a": 3}\n', ["malformed_row", {"a": 2}, {"a": 3}]),
        ('[{"a": 1}, {"a": 2}, {"a', [{"a": 1}, {"a": 2}, "malformed_row"]),
        ('{"a": 1} {"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ('{"a": "}{"}\n{"a": 2}{"a": 3}\n', [{"a": "}{"}, {"a": 2}, {"a": 3}]),
        ('{"a": 1}\n[2]\n"x"\n', [{"a": 1}, "malformed_row", "malformed_row"]),
        ('{"a": "2020-01-02", "b": 1.10}\n', [{"a": "2020-01-02", "b": 1.1}]),
    ],
)
def test_odd_json(tmp_path, text, expected):
    assert read(folder(tmp_path, {"a.jsonl": text}))[0] == expected


def test_a_json_file_that_expands_beyond_memory_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_CHARACTERS", 10_000)
    source = folder(tmp_path, {"a.json.gz": gzip.compress(b"[\n" + b'{"a": 1},\n' * 10_000)})
    _, sample = source.read("default", 9)
    assert [type(error).__name__ for _, error in sample.unread] == ["TooLargeError"]


# ---------------------------------------------------------------------------------------------------------- reading


def test_all_rows_of_a_file_have_all_columns(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
    assert read_file(tmp_path / "a.jsonl") == [{"a": 1, "b": None}, {"a": None, "b": 2}]
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"b": \n')
    with pytest.raises(RebaseError, match="row 1: malformed_row"):
        read_file(tmp_path / "a.jsonl")
    (tmp_path / "a.pdf").write_text("%PDF")
    with pytest.raises(RebaseError, match=r"cannot read '.doc'"):
        read_file(tmp_path / "a.doc")


def test_a_local_folder_is_read_without_the_network_and_leaves_no_cache(tmp_path, monkeypatch):
    import socket

    import datasets.config

    def no_network(*_):
        raise AssertionError("a request was sent")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for name in ("a.txt", "a.csv", "a.parquet", "a.xml"):
        source = folder(tmp_path / name, {name: as_parquet(ROWS) if name == "a.parquet" else "a\nb\n"})
        assert rows(source)
    assert not (tmp_path / "cache").exists()


def test_an_unknown_config_or_split_says_which_there_are(tmp_path):
    folder(tmp_path, {"train.csv": "a\n1\n", "test.csv": "a\n1\n"})
    with pytest.raises(RebaseError, match="there is no config 'x'; there are default"):
        FolderSource(tmp_path).read("x", 9)
    with pytest.raises(RebaseError, match="there is no split 'dev'; there are train, test"):
        FolderSource(tmp_path, split="dev").read("default", 9)
    assert HubSource("o/n", None, None, config="x").configs() == ["x"]
