"""Synthesize: the baseline of examples written from the instruction and the task's examples alone."""

from rebase.pipelines.synthesize.pipeline import create_pipeline as create_pipeline
