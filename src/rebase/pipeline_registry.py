"""What ``kedro run --pipeline=NAME`` can name."""

from kedro.framework.project import find_pipelines
from kedro.pipeline import Pipeline


def register_pipelines() -> dict[str, Pipeline]:
    """Every folder of ``rebase.pipelines``; the default is the whole method."""
    pipelines = find_pipelines(raise_errors=True)
    if "rebase" in pipelines:
        pipelines["__default__"] = pipelines["rebase"]
    return pipelines
