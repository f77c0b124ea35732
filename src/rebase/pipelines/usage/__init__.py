"""Usage: what the teacher was asked and paid, beside what had been estimated."""

from rebase.pipelines.usage.pipeline import create_pipeline as create_pipeline
