"""Chain of thought: the rationale that leads to each answer."""

from rebase.pipelines.cot.pipeline import create_pipeline as create_pipeline
