from collections import namedtuple
from pathlib import Path

import pytest

from rebase.errors import RebaseError
from rebase.student.checkpoints import COMPLETE, check_disk, checkpoint_to_resume, last_checkpoint


def test_incomplete_checkpoints_are_removed(tmp_path: Path) -> None:
    assert checkpoint_to_resume(tmp_path) is None
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert checkpoint_to_resume(tmp_path) == last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-11").exists()


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(2**20))
    with pytest.raises(RebaseError, match=r"1 MiB free, and checkpoints need \d+"):
        check_disk(tmp_path / "run", trainable=1000)
