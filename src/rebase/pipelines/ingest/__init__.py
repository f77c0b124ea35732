"""Ingest: raw datasets to rows."""

from rebase.pipelines.ingest.pipeline import create_pipeline as create_pipeline
