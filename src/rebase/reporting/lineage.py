"""The lineage as a static site: kedro-viz's view with previews, for any web server and offline.

The only module that uses kedro-viz's internal API; ``tests/reporting/test_lineage.py`` says what it relies on.
"""

import re
from pathlib import Path
from typing import Any

import fsspec
from kedro_viz.api.rest.responses.metadata import MetadataAPIResponse
from kedro_viz.api.rest.responses.run_events import RunStatusAPIResponse
from kedro_viz.api.rest.responses.save_responses import write_api_response_to_fs
from kedro_viz.api.rest.utils import get_package_compatibilities
from kedro_viz.integrations.deployment.base_deployer import BaseDeployer
from kedro_viz.server import load_and_populate_data

#: kedro-viz's page loads a font from another host; without it the browser uses a local one.
_EXTERNAL_LINK = re.compile(r"""<link\b[^>]*["']https?://[^>]*>\s*""")
#: kedro-viz's state for a new visitor: without its guided tour, which covers the graph.
_FIRST_VISIT = """<script>localStorage.KedroViz ??= '{"showFeatureHints": false}'</script>"""


class _Site(BaseDeployer):
    """kedro-viz's writer for a chosen folder, without requests to other hosts.

    It adds the metadata that the page requests, and an empty run status: the last run may be of another pipeline, and
    its traceback would reveal paths.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._path, self._fs = folder, fsspec.filesystem("file")

    def _ingest_heap_analytics(self) -> None:
        for page in self._path.glob("*.html"):
            _rewrite(page, _EXTERNAL_LINK, "")
            _rewrite(page, re.compile("<head>"), f"<head>{_FIRST_VISIT}")
        metadata = MetadataAPIResponse(package_compatibilities=get_package_compatibilities())
        write_api_response_to_fs(f"{self._path}/api/metadata", metadata, self._fs)
        write_api_response_to_fs(f"{self._path}/api/run-status", RunStatusAPIResponse(), self._fs)


def write_site(folder: Path, project: Path, env: str | None = None, parameters: dict[str, Any] | None = None) -> None:
    """Write the site of a project's pipelines, with data previews of an environment and runtime parameters.

    Paths are relative to the project, so that a published site reveals nothing about the machine.
    """
    load_and_populate_data(project, env, package_name=__package__.partition(".")[0], extra_params=parameters)
    _Site(folder).deploy(is_all_previews_enabled=True)
    for node in (folder / "api" / "nodes").iterdir():
        _rewrite(node, re.compile(re.escape(f"{project.as_posix()}/")), "")


def _rewrite(file: Path, pattern: re.Pattern[str], replacement: str) -> None:
    file.write_text(pattern.sub(replacement, file.read_text(encoding="utf-8")), encoding="utf-8")
