"""The report in a browser: its lists, on a phone, and on paper."""

from pathlib import Path
from typing import Any

import pytest

from rebase.records import Task
from rebase.reporting.report import write_report
from tests.browser import needs_chromium, open_page
from tests.reporting.test_report import pieces, predictions, retrieved  # noqa: F401  # fixtures

pytestmark = needs_chromium


@pytest.fixture
def address(reading_task: Task, pieces: dict[str, Any], tmp_path: Path) -> str:  # noqa: F811
    file = tmp_path / "report.html"
    file.write_text(write_report(reading_task, **pieces), encoding="utf-8")
    return file.as_uri()


def test_lists_are_filtered_and_sorted(address: str) -> None:
    with open_page(1280, 900) as (page, log):
        page.goto(address)
        answers = page.locator("#answers .list")
        rows = answers.locator("tbody tr:visible")
        assert rows.count() == 24
        answers.locator("input").fill("says b</b>")
        assert (rows.count(), rows.first.locator("td").first.inner_text()) == (1, "lost")
        answers.locator("input").fill("")
        answers.locator("select").select_option("won")
        assert rows.count() == 1
        answers.locator("select").select_option("")
        heading = answers.locator("th").nth(1)
        heading.click()
        heading.press("Enter")
        assert heading.get_attribute("aria-sort") == "descending"
        assert "query x" in rows.first.inner_text()
        assert not log.errors


def test_a_phone_is_told_of_columns_beside_the_screen(address: str) -> None:
    with open_page(390, 844) as (page, _):
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        wide = page.evaluate(
            "[...document.querySelectorAll('.wide')].filter((box) => box.scrollWidth > box.clientWidth + 1)"
            ".map((box) => getComputedStyle(box, '::before').content)"
        )
        assert wide
        assert all("More columns" in hint for hint in wide)


def test_on_paper_details_are_open_and_table_headings_repeat(address: str) -> None:
    with open_page(794, 1123) as (page, _):
        page.goto(address)
        closed = page.locator("details:not([open], .rows details)")
        assert closed.count() > 0
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert closed.count() == 0
        page.emulate_media(media="print")
        displays = page.evaluate(
            "[...document.querySelectorAll('thead')].map((head) => getComputedStyle(head).display)"
        )
        assert set(displays) == {"table-header-group"}
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert closed.count() > 0
