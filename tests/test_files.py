import os
import stat
import subprocess
import sys

import pytest

from rebase.files import (
    CHECKSUMS,
    damaged_files,
    remove_temporaries,
    replacing_file,
    replacing_folder,
    write_checksums,
)


@pytest.mark.parametrize("replacing", [replacing_file, replacing_folder])
def test_an_error_leaves_the_old_content_and_no_litter(tmp_path, replacing):
    target = tmp_path / "target"
    with replacing(target) as temporary:
        (temporary / "f" if temporary.is_dir() else temporary).write_text("old")

    def fail_half_way():
        with replacing(target) as temporary:
            (temporary / "f" if temporary.is_dir() else temporary).write_text("ne")
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half"):
        fail_half_way()
    assert (target / "f" if target.is_dir() else target).read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_file_is_replaced_and_readable_by_all(tmp_path):
    target = tmp_path / "new" / "a.txt"
    for text in ("one", "two"):
        with replacing_file(target) as temporary:
            temporary.write_text(text)
            assert temporary != target
    assert target.read_text() == "two"
    assert stat.S_IMODE(target.stat().st_mode) == 0o644


def test_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "folder"
    for name in ("one", "two"):
        with replacing_folder(target) as temporary:
            (temporary / name).write_text(name)
    assert [file.name for file in target.iterdir()] == ["two"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("replacing", ["replacing_file", "replacing_folder"])
def test_a_killed_write_leaves_the_target_as_it_was(tmp_path, replacing):
    script = (
        "import os, pathlib, signal, sys\n"
        f"from rebase.files import {replacing} as replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    (temporary / 'f' if temporary.is_dir() else temporary).write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    target = tmp_path / "target"
    assert subprocess.run([sys.executable, "-c", script, target], check=False).returncode == -9
    assert not target.exists()
    [leftover] = tmp_path.iterdir()
    assert remove_temporaries(tmp_path) == [leftover]
    assert not list(tmp_path.iterdir())


def test_temporaries_of_living_processes_and_other_files_are_kept(tmp_path):
    other_machine = tmp_path / ".result-00000000-1-abcdefgh"
    old, earlier_version = tmp_path / ".old-00000000-1-abcdefgh", tmp_path / "a" / ".result-abcdefgh"
    for folder in (other_machine, old, earlier_version, tmp_path / ".git", tmp_path / ".checksums.json"):
        folder.mkdir(parents=True)
    for folder in (old, earlier_version):
        os.utime(folder, (0, 0))
    with replacing_folder(tmp_path / "own") as own, replacing_file(tmp_path / "file") as file:
        assert sorted(remove_temporaries(tmp_path)) == sorted([old, earlier_version])
        assert own.exists()
        assert file.exists()
    assert other_machine.exists()
    assert remove_temporaries(tmp_path / "nowhere") == []


def test_checksums_of_a_folder(tmp_path):
    (tmp_path / "inner").mkdir()
    for name in ("weights", "inner/log", "README.md"):
        (tmp_path / name).write_text(name)
    assert damaged_files(tmp_path) == [], "of an earlier version"
    write_checksums(tmp_path)
    (tmp_path / "README.md").write_text("People may edit it.")
    (tmp_path / "later").write_text("unknown")
    assert damaged_files(tmp_path) == []
    (tmp_path / "inner" / "log").write_text("l0g")
    (tmp_path / "weights").unlink()
    assert sorted(damaged_files(tmp_path)) == [tmp_path / "inner" / "log", tmp_path / "weights"]
    for content in ("", "[]", '{"weights"', "5"):
        (tmp_path / CHECKSUMS).write_text(content)
        assert damaged_files(tmp_path) == [tmp_path / CHECKSUMS]
