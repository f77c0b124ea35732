"""A provider on the loopback, and requests to ask it."""

from collections.abc import Iterator

import pytest

from tests.teacher.server import Provider, serving


@pytest.fixture
def provider() -> Iterator[Provider]:
    with serving() as provider:
        yield provider
