"""Raw rows of a task's evaluation set or inputs, from a file or from the hub."""

from pathlib import Path
from typing import Any

import pytest

from rebase.datastore.sources import FolderSource
from rebase.errors import RebaseError
from rebase.records import EvaluationSpec, Task
from rebase.tasks.source_rows import SourceRows, read_source_rows


def read(task: Task, location: str | Path, split: str = "train") -> SourceRows:
    return read_source_rows(task, str(location), split, None, "input", "inputs_source")


def test_all_rows_of_a_file_are_read_and_its_path_is_for_messages_alone(reading_task: Task, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text("".join(f'{{"n": {n}}}\n' for n in range(300)))
    source = read(reading_task, file)
    assert source.rows == [{"n": n} for n in range(300)]
    assert (source.location, source.origin) == (str(file), {"dataset": "own.jsonl"})


def test_what_cannot_be_read_is_named_with_what_to_do(reading_task: Task, tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"n": ')
    (tmp_path / "sheet.xlsx").touch()
    for location, words in {
        tmp_path: r"The input of task 'tiny_reading' .* a folder, or .* Give a JSONL, CSV or Parquet file\.$",
        tmp_path / "sheet.xlsx": r"cannot be read from .*sheet\.xlsx: it is .* Give a JSONL, CSV or Parquet file\.$",
        tmp_path / "none.csv": r"The input of task 'tiny_reading' is missing: there is no file .*none\.csv\.$",
        tmp_path / "broken.jsonl": r"cannot be read from .*broken\.jsonl: (.|\n)*Correct the file\.$",
        "owner/name": r"from the hub as 'owner/name': (.|\n)*Give a file instead: --params=inputs_source=FILE\.$",
    }.items():
        with pytest.raises(RebaseError, match=words):
            read(reading_task, location)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_a_file_in_another_encoding_is_an_error(reading_task: Task, tmp_path: Path, name: str) -> None:
    """Answers would be compared with "caf\ufffd"."""
    content = {"a.csv": "answer\ncafé\n", "a.jsonl": '{"answer": "café"}\n', "a.txt": "café\n"}[name]
    (tmp_path / name).write_bytes(content.encode("cp1252"))
    with pytest.raises(RebaseError, match=rf"{name}: the content is not text in UTF-8; save it as UTF-8\n"):
        read(reading_task, tmp_path / name)
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / name).write_bytes(content.encode(encoding))
        [row] = read(reading_task, tmp_path / name).rows
        assert list(row.values()) == ["café"]


@pytest.mark.parametrize(
    ("location", "config", "revision", "expected"),
    [
        ("owner/items", "b", "r2", ("b", "r2")),
        ("owner/items", None, "r2", ("a", "r2")),
        ("owner/other", "b", "r2", ("b", None)),
        ("owner/other", "c", "r2", ("a", None)),
    ],
)
def test_the_evaluation_set_s_config_and_revision_are_for_itself(
    reading_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    location: str, config: str | None, revision: str, expected: tuple[str, str | None],
) -> None:  # fmt: skip
    """Another dataset has the config of the same name if there is one, and a revision of its own."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("text\n" + f"of {name}\n" * 300)
    (tmp_path / "README.md").write_text(
        "---\nlicense: mit\nconfigs: [{config_name: a, data_files: a.csv}, {config_name: b, data_files: b.csv}]\n---\n"
    )
    revisions = []

    def hub(location: str, revision: str | None, token: str | None, split: str) -> Any:
        revisions.append(revision)
        return FolderSource(tmp_path, split=split)

    monkeypatch.setattr("rebase.tasks.source_rows.HubSource", hub)
    evaluation = reading_task.evaluation.model_dump() | {"source": "owner/items", "config": config}
    spec = EvaluationSpec.model_validate(evaluation | {"revision": revision})
    source = read(reading_task.model_copy(update={"evaluation": spec}), location)
    name, used_revision = expected
    assert source.rows == [{"text": f"of {name}"}] * 300
    assert revisions == [used_revision]
    assert source.origin.items() >= {"dataset": location, "config": name, "license": "mit"}.items()
