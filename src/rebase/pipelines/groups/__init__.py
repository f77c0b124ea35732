"""Groups: mean scores of benchmarks with several tasks."""

from rebase.pipelines.groups.pipeline import create_pipeline as create_pipeline
