"""Chain of thought: the reasoning that leads to each answer, kept where it does."""

from rebase.pipelines.cot.pipeline import create_pipeline as create_pipeline
