"""The lineage as a static site: what kedro-viz shows, previews included, for any web server and without a network."""

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

#: kedro-viz's page takes a font from another machine; without it the browser uses one that it has.
_ELSEWHERE = re.compile(r"""<link\b[^>]*["']https?://[^>]*>\s*""")


class _Site(BaseDeployer):
    """kedro-viz's own writer, into a folder of our choice, with pages that ask nothing of other machines.

    And with the one answer that its page asks for and its writer leaves out. Of the last run it says nothing: that may
    have been another pipeline's, and where it failed the traceback tells of the machine.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._path, self._fs = folder, fsspec.filesystem("file")

    def _ingest_heap_analytics(self) -> None:
        for page in self._path.glob("*.html"):
            _rewrite(page, _ELSEWHERE, "")
        answer = MetadataAPIResponse(package_compatibilities=get_package_compatibilities())
        write_api_response_to_fs(f"{self._path}/api/metadata", answer, self._fs)
        write_api_response_to_fs(f"{self._path}/api/run-status", RunStatusAPIResponse(), self._fs)


def write_site(folder: Path, project: Path, env: str | None = None, parameters: dict[str, Any] | None = None) -> None:
    """Write the site of a project's pipelines, with previews of the data of an environment and runtime parameters.

    Paths in it are relative to the project: a site that is published says nothing of the machine that wrote it.
    """
    load_and_populate_data(project, env, package_name=__package__, extra_params=parameters)
    _Site(folder).deploy(is_all_previews_enabled=True)
    for node in (folder / "api" / "nodes").iterdir():
        _rewrite(node, re.compile(re.escape(f"{project.as_posix()}/")), "")


def _rewrite(file: Path, pattern: re.Pattern[str], replacement: str) -> None:
    file.write_text(pattern.sub(replacement, file.read_text(encoding="utf-8")), encoding="utf-8")
