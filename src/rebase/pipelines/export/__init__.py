"""Export: merge the adapter into the student."""

from rebase.pipelines.export.pipeline import create_pipeline as create_pipeline
