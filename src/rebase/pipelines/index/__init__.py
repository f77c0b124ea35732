"""Index: all vectors in searchable segments."""

from rebase.pipelines.index.pipeline import create_pipeline as create_pipeline
