"""The documentation as a site: ``sphinx-build -W -c docs . build/site``. Neither the build nor the pages load anything.

The site has the Markdown files of the repository, which are the same pages without a build.
"""

from pathlib import Path

from sphinx.application import Sphinx

project = "rebase"
html_title = "rebase"
extensions = ["myst_parser"]
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "conf/README.md", "docs/**/*.md", "docs/*.md"]
root_doc = "docs/index"
myst_heading_anchors = 3
html_theme = "furo"
html_show_sourcelink = html_copy_source = False
html_show_copyright = False
html_show_search_summary = False  # it would read pages, which a browser does not allow in a folder
suppress_warnings = ["misc.highlighting_failure"]  # README's diagram: GitHub draws it

#: The order of the pages, added to the start page. In the file it would be a block of text for readers on GitHub.
ORDER = {
    "Start": "README docs/tutorial/index",
    "How to": "gpu servers vllm cluster hub map see check use compare students judge trace provider metric",
    "How it works": "docs/method docs/teacher docs/scale docs/results",
    "Reference": "conf/README globals parameters catalog pipelines commands tasks",
    "Contributing": "CONTRIBUTING CHANGELOG",
}
FOLDERS = {"How to": "docs/howto/", "Reference": "docs/reference/"}


def setup(app: Sphinx) -> None:
    """Connect the events of the build."""
    app.connect("source-read", add_page_order)
    app.connect("build-finished", add_start_page)


def add_page_order(_: Sphinx, name: str, source: list[str]) -> None:
    """Add the order of the pages to the start page."""
    if name == root_doc:
        for caption, pages in ORDER.items():
            paths = [page if "/" in page else FOLDERS.get(caption, "") + page for page in pages.split()]
            lines = [":hidden:", f":caption: {caption}", "", *(f"/{path}" for path in paths)]
            source[0] += "\n".join(["\n\n```{toctree}", *lines, "```\n"])


def add_start_page(app: Sphinx, _: Exception | None) -> None:
    """Lead from the site's address to the start page."""
    target = f"{root_doc}.html"
    page = f'<!doctype html><meta http-equiv="refresh" content="0; url={target}"><a href="{target}">{project}</a>\n'
    Path(app.outdir, "index.html").write_text(page, encoding="utf-8")
