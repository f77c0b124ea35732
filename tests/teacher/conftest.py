"""A provider on the loopback, and requests to ask it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.teacher.server import Provider, serving


@pytest.fixture
def provider() -> Iterator[Provider]:
    with serving() as provider:
        yield provider


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A response cache that does not exist yet."""
    return tmp_path / "cache" / "responses.sqlite"
