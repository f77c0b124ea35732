"""The pipelines that ``kedro run --pipelines=NAME`` can run."""

from kedro.framework.project import find_pipelines
from kedro.pipeline import Pipeline


def register_pipelines() -> dict[str, Pipeline]:
    """Return the pipeline of each folder of ``rebase.pipelines``; the default is ``rebase``."""
    pipelines = find_pipelines(raise_errors=True)
    if "rebase" in pipelines:
        pipelines["__default__"] = pipelines["rebase"]
    return pipelines
