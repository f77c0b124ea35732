"""A trace on the terminal."""

import pytest

from rebase.reporting.trace import trace
from tests.reporting.run import Run, encode, shown, tables


@pytest.mark.parametrize("identifier", ["owner/foxes/b/train/7", "i1", "owner/foxes"])
def test_hostile_text_is_shown_as_text(identifier: str) -> None:
    output = shown(trace(identifier, Run(tables(), encode=encode)))
    assert not set(output) & set("\x1b\x07\x9b\u202e")
    if identifier != "owner/foxes":
        assert r"\x1b[31mred\x1b[0m [bold]not bold[/bold] \u202eback\x07 \x9b2J" in output
