"""Export: the expert as one model."""

from rebase.pipelines.export.pipeline import create_pipeline as create_pipeline
