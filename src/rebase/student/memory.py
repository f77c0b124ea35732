"""The memory that is free for this process."""

import math
from contextlib import suppress
from pathlib import Path


def available_memory() -> int:
    """Bytes that this process can still take: those free on the machine, or fewer in a limited control group."""
    import psutil  # type: ignore[import-untyped]

    return int(min(psutil.virtual_memory().available, group_memory()))


def group_memory(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that the limits of this process's control groups leave (containers, batch jobs); infinite without a limit.

    ``groups`` and ``root`` are Linux's files of both versions. Pages of files that were not read lately count as free:
    they are dropped when memory is short.
    """
    free = math.inf
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, names = root, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        group = base / path.lstrip("/")
        # Limits of parents apply, too. In a container, `root` itself is the group, and `path` may not exist in it.
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):  # no limit
                limit, used = (int((folder / name).read_text()) for name in names)
                counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                inactive = counts.get("total_inactive_file", counts.get("inactive_file", 0))
                free = min(free, limit - used + int(inactive))
    return free
