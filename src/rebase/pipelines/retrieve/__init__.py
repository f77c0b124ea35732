"""Retrieve: the rows that suit the task best, screened."""

from rebase.pipelines.retrieve.pipeline import create_pipeline as create_pipeline
