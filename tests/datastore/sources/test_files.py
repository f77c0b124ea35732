"""Which files of a folder are the data of which config and split."""

import gzip
import json
import time

import pytest

from rebase.errors import RebaseError
from tests.datastore.folders import card, folder, ingested, rejections, rows


def test_a_folder_without_a_card_is_one_config_of_the_most_frequent_format(tmp_path):
    source = folder(
        tmp_path,
        {
            "b.csv": "a\nsecond\n",
            "a.csv": "a\nfirst\n",
            "en/data.csv.gz": gzip.compress(b"b\nother columns\n"),
            "table.TSV": "a\tb\n1\t2\n",
            "data.jsonl": '{"a": "from jsonl"}\n',
            "notes.txt": "no table",
            ".hidden.csv": "a\nx\n",
            ".ipynb_checkpoints/a.csv": "a\nx\n",
            "__pycache__/a.csv": "a\nx\n",
            "dataset_infos.json": "{}",
            "README.md": "card",
        },
    )
    assert source.configs() == ["default"]
    files, sample = source.read("default", 1000)
    assert [row for _, row in sample.rows] == [
        {"a": "first"}, {"a": "second"}, {"b": "other columns"}, {"a": "1", "b": "2"}]  # fmt: skip
    assert (files.other_files, files.other_splits, sample.unread) == (["data.jsonl", "notes.txt"], [], [])


CARD = """\ufeff---
configs:
- config_name: one
  data_files:
  - {split: test, path: test.csv}
  - {split: train, path: [train/*.csv, more.csv]}
- config_name: only_test
  data_files: [{split: test, path: test.csv}]
- data_files: test.csv
- config_name: up
  data_files: ../secret.csv
- config_name: rooted
  data_files: /etc/*
- config_name: linked
  data_files: link.csv
- config_name: remote
  data_files: https://example.org/a.csv
- config_name: archived
  data_files: zip://*.csv::../secret.zip
- config_name: above
  data_dir: ..
---
"""


def test_declared_configs_never_leave_the_folder(tmp_path):
    (tmp_path / "secret.csv").write_text("a\nsecret\n")
    source = folder(
        tmp_path / "d",
        {"README.md": CARD, "train/x.csv": "a\n1\n", "more.csv": "a\n2\n", "test.csv": "a\n3\n"},
    )
    (tmp_path / "d" / "link.csv").symlink_to(tmp_path / "secret.csv")
    bad = ["above", "archived", "linked", "remote", "rooted", "up"]
    assert source.configs() == sorted([*bad, "default", "one", "only_test"])
    assert rows(source, "one") == [{"a": "1"}, {"a": "2"}]
    assert rows(source, "only_test") == rows(source, "default") == [{"a": "3"}]
    for config in bad:
        with pytest.raises(RebaseError, match=r"inside the dataset"):
            rows(source, config)


def test_names_with_wildcards_are_names(tmp_path):
    source = folder(tmp_path / "odd [set]*", {"a[1]?.csv": "a\n1\n", "__b.csv": "a\n2\n", "{c,d}.csv": "a\n3\n"})
    assert rows(source, "default") == [{"a": "2"}, {"a": "1"}, {"a": "3"}]


def test_thousands_of_files_are_listed_in_linear_time(tmp_path):
    def seconds(count):
        source = folder(tmp_path / str(count), {f"part{number:05}.csv": "text\nx\n" for number in range(count)})
        began = time.process_time()
        assert ingested(source)["in"] == count
        return time.process_time() - began

    seconds(10)
    assert seconds(2000) < 30 * seconds(200)


def test_folders_that_are_nested_without_end_are_too_large(tmp_path):
    source = folder(tmp_path, {"/".join(["d"] * 80) + "/a.csv": "text\nx\n"})
    assert rejections(source) == [("too_large", 0)]


def test_wildcards_that_never_end_are_an_error(tmp_path):
    for number, pattern in enumerate(["*a" * 25 + "b", "/".join(["**"] * 9) + "/b"]):
        card = f"---\nconfigs: [{{config_name: a, data_files: '{pattern}'}}]\n---\n"
        source = folder(tmp_path / str(number), {"a" * 200 + ".csv": "text\nx\n", "README.md": card})
        with pytest.raises(RebaseError, match="too many wildcards"):
            source.read("a", 10)


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


@pytest.mark.parametrize(
    ("others", "recorded"),
    [
        (["CHANGELOG.md", "CONTRIBUTING.md", "LICENSE.md"], []),
        (["pyproject.toml", "config.toml"], []),
        (["docs/train.md"], []),
        (["notes.txt", "train.txt", "LICENSE.txt", "README-de.txt"], ["notes.txt", "train.txt"]),
    ],
)
def test_notes_beside_the_data_are_no_data(tmp_path, others, recorded):
    source = folder(tmp_path, {"reviews.csv": "t\na\n"} | dict.fromkeys(others, "Some words.\n"))
    assert rows(source) == [{"t": "a"}]
    assert source.read("default", 9)[0].other_files == recorded
    folder(tmp_path, {"README.md": card("configs: [{config_name: default, data_files: '*'}]\n")})
    if not recorded:
        assert rows(source) == [{"t": "a"}]


def test_notes_are_data_where_the_card_names_them_and_where_nothing_else_is(tmp_path):
    named = card("configs: [{config_name: default, data_files: [license.txt, a.csv, b.txt]}]\n")
    texts = {"license.txt": "one\n", "b.txt": "two\n"}
    assert rows(folder(tmp_path / "named", texts | {"README.md": named, "a.csv": "t\na\n"})) == [
        {"text": "one"}, {"text": "two"}]  # fmt: skip
    assert rows(folder(tmp_path / "texts", texts)) == [{"text": "two"}]
    assert rows(folder(tmp_path / "only", {"license.txt": "one\n"})) == [{"text": "one"}]
    assert rows(folder(tmp_path / "table", {"license.csv": "t\none\n"} | texts)) == [{"t": "one"}]


def test_tasks_of_agents_are_read_by_the_library(tmp_path):
    files = {"task.toml": "[metadata]\n", "instruction.md": "Do it.", "environment/Dockerfile": "FROM x", "a.md": ""}
    source = folder(tmp_path, {f"tasks/one/{name}": text for name, text in files.items()})
    assert [row["instruction"] for row in rows(source)] == ["Do it."]


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
