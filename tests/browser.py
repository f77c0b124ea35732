"""Open local pages in a real browser (headless Chromium)."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

from tests.loopback import answering

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed: apt-get install chromium")


@dataclass
class PageLog:
    """The requests and the errors of a page."""

    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder on loopback, and give its address."""
    with answering(partial(_Quiet, directory=str(folder))) as address:
        yield address


@contextmanager
def open_page(width: int, height: int, **settings: Any) -> Iterator[tuple[Page, PageLog]]:
    """Open an empty page in a new browser; ``settings`` are those of playwright's ``new_page``."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height}, **settings)
        log = PageLog()
        page.on("request", lambda request: log.requests.append(request.url))
        page.on("pageerror", lambda error: log.errors.append(str(error)))
        page.on("console", lambda message: log.errors.append(message.text) if message.type == "error" else None)
        try:
            yield page, log
        finally:
            browser.close()


def go_to_lineage(page: Page, address: str) -> None:
    """Open kedro-viz's graph as a new visitor meets it."""
    page.goto(address)
    page.locator(".pipeline-node").first.wait_for()
    page.wait_for_timeout(2000)  # The graph is animated.
