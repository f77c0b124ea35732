"""Compare: train and evaluate every baseline and ReBase in the same way, in one table."""

from rebase.pipelines.compare.pipeline import create_pipeline as create_pipeline
