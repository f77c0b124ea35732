"""Index: one searchable whole over all vectors."""

from rebase.pipelines.index.pipeline import create_pipeline as create_pipeline
