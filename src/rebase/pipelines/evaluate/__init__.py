"""Evaluate: the student and the expert on the task's evaluation set."""

from rebase.pipelines.evaluate.pipeline import create_pipeline as create_pipeline
