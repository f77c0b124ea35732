"""The whole method: the eight stages, composed."""

from rebase.pipelines.rebase.pipeline import create_pipeline as create_pipeline
