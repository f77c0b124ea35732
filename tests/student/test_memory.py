import math
from pathlib import Path

import psutil
import pytest

from rebase.student.memory import available_memory, group_memory

GIB = 2**30
V1 = {"memory.limit_in_bytes": 4 * GIB, "memory.usage_in_bytes": 3 * GIB}
V2 = {"memory.max": 4 * GIB, "memory.current": 3 * GIB}


def free_memory(folder: Path, groups: str, files: dict[str, dict[str, object]]) -> float:
    """What ``group_memory`` finds with these lines of ``/proc/self/cgroup`` and files by group."""
    (folder / "groups").write_text(groups)
    for group, contents in files.items():
        (folder / "root" / group).mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / "root" / group / name).write_text(f"{content}\n")
    return group_memory(folder / "groups", folder / "root")


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/\n", {"": V2}),  # in a container, the group is the root of what is visible
        ("0::/user/job\n", {"user/job": V2}),
        ("0::/user/job\n", {"user": V2, "user/job": {**V2, "memory.max": "max"}}),
        ("0::/user/job\n", {"user": V2, "user/job": {**V2, "memory.max": 9 * GIB}}),
        ("5:cpu,cpuacct:/job\n4:memory:/docker/1\n0::/\n", {"memory": V1}),
        ("4:hugetlb,memory:/job\n", {"memory/job": V1}),
    ],
)
def test_the_smallest_limit_of_the_groups_decides(tmp_path: Path, groups: str, files: dict) -> None:
    statistics = "anon 5\ninactive_file 1048576"
    if "memory" in groups:  # in version 1, the plain count has no subgroups
        statistics += "\ntotal_inactive_file 2097152"
    files = {name: {**contents, "memory.stat": statistics} for name, contents in files.items()}
    expected = GIB + (2 if "memory" in groups else 1) * 2**20
    assert free_memory(tmp_path, groups, files) == expected


@pytest.mark.parametrize("files", [{}, {"job": {**V2, "memory.max": "max", "memory.stat": ""}}])
def test_no_limit(tmp_path: Path, files: dict) -> None:
    assert free_memory(tmp_path, "0::/job\n", files) == math.inf
    assert group_memory(tmp_path / "missing", tmp_path) == math.inf  # not on Linux


def test_a_limit_below_the_free_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rebase.student.memory.group_memory", lambda: 1000.0)
    assert available_memory() == 1000
    monkeypatch.setattr("rebase.student.memory.group_memory", lambda: math.inf)
    assert 0 < available_memory() <= psutil.virtual_memory().total
