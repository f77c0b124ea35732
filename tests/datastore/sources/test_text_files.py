"""Text files: CSV and JSON, encodings, and the oddities of the world."""

import bz2
import gzip
import io
import json
import lzma
import random
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rebase.datastore.sources import text_files
from rebase.datastore.sources.reading import read_file
from rebase.datastore.sources.text_files import open_text
from rebase.errors import RebaseError
from tests.datastore.folders import folder, ingested, read, rejections, rows


def test_a_line_without_end_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_CHARACTERS", 1000)
    source = folder(tmp_path, {"a.csv.gz": gzip.compress(b"text\nx\n" + b"y" * 2000), "b.csv": "text\nz\n"})
    metadata = ingested(source)
    assert metadata["kept"] == 1
    assert [rejection["reason"] for rejection in metadata["rejected"]] == ["too_large"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.json", "[" + "[]," * 2000 + "[]]"), ("a.jsonl", '{"a": [' + "1," * 2000 + "1]}\n" * 2), ("a.csv", "," * 2000)],
)
def test_more_values_than_fit_into_memory_are_too_large(tmp_path, monkeypatch, name, text):
    monkeypatch.setattr(text_files, "MAX_VALUES", 1000)
    monkeypatch.setattr(text_files, "MAX_COLUMNS", 1000)
    assert rejections(folder(tmp_path, {name: text})) == [("too_large", 0)]


@pytest.mark.parametrize("format_", ["zip", "gzip", "bz2", "xz", "png", "pdf", "program", "parquet", "noise"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_what_is_no_text_has_no_rows(tmp_path, format_, name):
    noise = random.Random(1).randbytes(3000)
    zipped, table = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a.txt", "some words\n" * 100)
    pq.write_table(pa.table({"text": ["some words"] * 100}), table)
    content = {
        "zip": zipped.getvalue(),
        "gzip": gzip.compress(b"text\nx\n"),
        "bz2": bz2.compress(b"text\nx\n"),
        "xz": lzma.compress(b"text\nx\n"),
        "png": b"\x89PNG\r\n\x1a\n" + noise,
        "pdf": b"%PDF-1.4\n" + noise,
        "program": b"\x7fELF\x02\x01\x01" + bytes(9) + noise,
        "parquet": table.getvalue(),
        "noise": noise,
    }[format_]
    source = folder(tmp_path, {name: content})
    [rejection] = ingested(source)["rejected"]
    assert (rejection["reason"], rejection["rows"]) == ("malformed", 0)
    assert f"{name}: ValueError: the content is not text" in rejection["detail"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-8"])
@pytest.mark.parametrize("text", ["文本,标签\n世界你好,二\n" * 20, "text,größe\nhéllo,2\n", "текст,да\nпривет,нет\n"])
def test_text_of_any_language_is_read(tmp_path, encoding, text):
    source = folder(tmp_path, {"a.csv": text.encode(encoding)})
    header, first = (line.split(",") for line in text.splitlines()[:2])
    assert rows(source, "default")[0] == dict(zip(header, first, strict=True))


@pytest.mark.parametrize("text", ["text,label\nhel\0lo there,1\n", "name\tcode\nAnna\0\tA1\nBert\tB2\n"])
def test_a_zero_byte_in_a_short_text_is_no_encoding(text):
    assert "".join(open_text(io.BytesIO(text.encode()), None)) == text


def test_separators_are_text_or_white_space(tmp_path):
    card = "---\nconfigs: [{{config_name: a, data_files: a.csv, sep: '{}'}}]\n---\n"
    written = {"||": "||", r"\|\|": "||", r"\.\.": "..", "::": "::", r"\t": "\t", ";|::": ";", r"\s+": "  "}
    for number, (separator, text) in enumerate(written.items()):
        files = {"a.csv": f"x{text}y\n1{text}2\n", "README.md": card.format(separator)}
        assert rows(folder(tmp_path / str(number), files), "a") == [{"x": "1", "y": "2"}]
    for number, separator in enumerate(["(x+)+y", r"\s*,\s*", "x{9999}", r"[ab]*c", r"\w+;"]):
        source = folder(tmp_path / f"odd{number}", {"a.csv": "x;y\n", "README.md": card.format(separator)})
        [(_, error)] = source.read("a", 10)[1].unread
        assert "is a regular expression" in str(error)


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
        ({"id7": {"q": 1, "a": 2}, "id9": {"q": 3, "a": 4}}, [{"q": 1, "a": 2}, {"q": 3, "a": 4}]),
        ({"a": {"5": 1, "9": 2}, "b": {"5": 3, "9": 4}}, [{"a": 1, "b": 3}, {"a": 2, "b": 4}]),
        ({"7": {"q": 1}, "9": {"a": 4}}, [{"q": 1}, {"a": 4}]),
        ({"0": {"0": 1}, "1": {"0": 2}}, [{"0": 1, "1": 2}]),
        ({"a": {"b": {"c": 1}}}, [{"a": {"b": {"c": 1}}}]),
        ({"a": [1, 2], "b": [3, 4]}, [{"a": 1, "b": 3}, {"a": 2, "b": 4}]),
        ({"a": 1, "b": {"c": [1, 2]}}, [{"a": 1, "b": {"c": [1, 2]}}]),
        ({"data": [{"a": [{"role": "user"}]}]}, [{"a": {"role": ["user"]}}]),
        ([], []),
        (1, ["malformed_row"]),
    ],
)
def test_a_file_of_one_json_value(tmp_path, value, expected):
    for number, text in enumerate([json.dumps(value), json.dumps(value, indent=1)]):
        assert rows(folder(tmp_path / str(number), {"a.json": text})) == expected


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


def test_all_rows_of_a_file_have_all_columns(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
    assert read_file(tmp_path / "a.jsonl") == [{"a": 1, "b": None}, {"a": None, "b": 2}]
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"b": \n')
    with pytest.raises(RebaseError, match="row 1: malformed_row"):
        read_file(tmp_path / "a.jsonl")
    (tmp_path / "a.pdf").write_text("%PDF")
    with pytest.raises(RebaseError, match=r"cannot read '.doc'"):
        read_file(tmp_path / "a.doc")
