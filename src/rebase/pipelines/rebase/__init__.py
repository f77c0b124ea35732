"""The whole method, composed."""

from rebase.pipelines.rebase.pipeline import create_pipeline as create_pipeline
