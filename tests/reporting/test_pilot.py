"""The pilot's findings on the terminal and as a page."""

import io

import pandas as pd
import pytest
from rich.console import Console

from rebase.reporting.pilot import show_pilot, write_pilot
from tests.browser import needs_chromium, open_page
from tests.pipelines.pilots import ROWS, find, sometimes
from tests.pipelines.test_estimate import PRICE
from tests.pipelines.test_transform import READING
from tests.scripted import Scripted, cached

HOSTILE = "</script><img src=x onerror=alert(1)>\x1b[31m"


def render(task, *findings):
    console = Console(width=80, file=io.StringIO())
    console.print(show_pilot(task, *findings))
    return console.file.getvalue(), write_pilot(task, *findings)


@pytest.mark.parametrize("say", [sometimes, lambda _: '{"example": null}', lambda _: f"{HOSTILE} [bold]"])
def test_terminal_and_page_show_the_findings(say):
    rows = ROWS.assign(row_id=[f"{HOSTILE}{n}" for n in range(len(ROWS))])
    table, summary, costs = find(cached(Scripted(say), price=PRICE), rows=rows)
    text, page = render(READING, table, summary, costs)
    assert ("intervals of the parts overlap" in text) == (say is sometimes)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "<img" not in page
    for shown in (f"{summary['kept']} of 20", "unfit" if summary["rejected"].get("unfit_row") else "invalid"):
        assert shown in text
        assert shown in page
    assert (
        bool(summary["nothing_kept"])
        == (not summary["kept"])
        == ("nothing usable" in page)
        == ("nothing usable" in text)
    )
    assert page.count("<h4>response</h4>") >= 3


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_and_loads_nothing(width, tmp_path):
    findings = find(cached(Scripted(sometimes), price=PRICE))
    file = tmp_path / "pilot.html"
    file.write_text(write_pilot(READING, *findings))
    with open_page(width, 800) as (page, log):
        page.goto(file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert (log.errors, log.requests) == ([], [file.as_uri()])


def test_an_unknown_price_is_said():
    table, summary, costs = find(cached(Scripted(sometimes), price=None))
    text, page = render(READING, table, summary, costs)
    assert "no price" in text
    assert "no price" in page
    assert pd.isna(table["dollars"]).all()
