"""Ways to damage a file."""

from collections.abc import Callable
from pathlib import Path

import pytest


def cut(content: bytes) -> bytes:
    """The first half, as after a full disk."""
    return content[: len(content) // 2]


def empty(content: bytes) -> bytes:
    """Nothing, as after a power failure."""
    return b""


def turn(content: bytes) -> bytes:
    """One bit in the middle is another, as on an old disk."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = (cut, empty, turn)
every_damage = pytest.mark.parametrize("damage", DAMAGES)


def damage_file(file: Path, damage: Callable[[bytes], bytes]) -> None:
    """Replace a file's content; a whole new file, as the page cache may have the old one mapped."""
    content = damage(file.read_bytes())
    file.unlink()
    file.write_bytes(content)
