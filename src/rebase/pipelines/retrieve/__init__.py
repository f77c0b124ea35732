"""Retrieve: the rows that suit the task best and pass the filters."""

from rebase.pipelines.retrieve.pipeline import create_pipeline as create_pipeline
