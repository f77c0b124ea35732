"""Catalog entries of models: handles that are cheap to load."""

import json
from pathlib import Path

import pytest
from kedro.io import DatasetError

from rebase.datasets import EncoderDataset, StudentDataset, StudentsDataset
from rebase.errors import RebaseError
from rebase.student.handle import Student


@pytest.mark.parametrize("kind", [EncoderDataset, StudentDataset])
def test_a_handle_loads_no_weights_and_shows_its_settings(kind: type, tmp_path: Path) -> None:
    folders = {"folder": str(tmp_path / "base")} | (
        {"workdir": str(tmp_path / "work")} if kind is StudentDataset else {}
    )
    entry = kind(model="owner/none", revision="abc", **folders)
    handle = entry.load()
    assert (handle.model, handle.revision, handle.folder) == ("owner/none", "abc", tmp_path / "base")
    assert json.loads(entry.preview()) == {"model": "owner/none", "revision": "abc", "dtype": "auto"}
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DatasetError, match=f"{kind.__name__} is read-only"):
        entry.save(handle)


def test_the_catalog_loads_handles():
    listed = [{"model": "a/b", "revision": "c"}, {"model": "a/b"}]
    students = StudentsDataset(listed, "base", "work").load()
    assert students == tuple(Student("a/b", revision, Path("base"), Path("work")) for revision in ("c", None))


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([], "at least 1"),
        (None, "list"),
        ("a/b", "list"),
        ([{"model": ""}], "0.model"),
        ([{"name": "a/b"}], "0.name"),
        ([{"model": "a/b"}, {"model": "a/b", "revision": None}], "lists a/b twice"),
    ],
)
def test_a_wrong_list_is_rejected(listed, message):
    with pytest.raises((DatasetError, RebaseError), match=message):
        StudentsDataset(listed, "base", "work").load()
