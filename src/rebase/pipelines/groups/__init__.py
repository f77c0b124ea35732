"""Groups: means over the tasks of a benchmark."""

from rebase.pipelines.groups.pipeline import create_pipeline as create_pipeline
