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


def test_long_values_and_tables_are_cut_and_say_so() -> None:
    values = {"raw": "x" * 2000, "nothing": "", "score": 0.123456, "names": ["a", "b"], "inner": {"deep": 1}}
    lines = [{"n": f"row{n}."} for n in range(50)]
    output = shown({"kind": "row", "id": "r", "rows": lines, "made_of_it": [], "response": values})
    text = "".join(output.split())  # long values are folded
    assert text.startswith("rowrrows")
    assert "row39.and10more;--jsonhasall" in text
    assert "madeofitnone" in text
    assert text.count("x") == 1500
    assert "x…500charactersmore;--jsonhasall" in text
    for line in ("nothing–", "score0.1235", "namesa,b", "innerdeep1"):
        assert line in text
