"""A real browser (Chromium, headless) on pages that this machine serves."""

import json
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
class Seen:
    """What a page asked for and what it complained of."""

    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The folder on loopback; yields its address."""
    with answering(partial(_Quiet, directory=str(folder))) as address:
        yield address


@contextmanager
def open_page(width: int, height: int, **settings: Any) -> Iterator[tuple[Page, Seen]]:
    """An empty page of a fresh browser; ``settings`` are those of playwright's ``new_page``."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height}, **settings)
        seen = Seen()
        page.on("request", lambda request: seen.requests.append(request.url))
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.on("console", lambda said: seen.errors.append(said.text) if said.type == "error" else None)
        try:
            yield page, seen
        finally:
            browser.close()


def go_to_lineage(page: Page, address: str) -> None:
    """See kedro-viz's graph as a visitor does who likes it light and has closed its hints, list and map."""
    visitor = {"theme": "light", "showFeatureHints": False, "visible": {"sidebar": False, "miniMap": False}}
    page.add_init_script(f"localStorage.setItem('KedroViz', {json.dumps(json.dumps(visitor))})")
    page.goto(address)
    page.locator(".pipeline-node").first.wait_for()
    page.wait_for_timeout(2000)  # The graph glides into its place.
