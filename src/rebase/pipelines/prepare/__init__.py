"""Prepare: read and validate the task's evaluation set, once a run."""

from rebase.pipelines.prepare.pipeline import create_pipeline as create_pipeline
