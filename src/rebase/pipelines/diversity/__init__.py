"""Diversity: how much the examples of a training set differ from one another."""

from rebase.pipelines.diversity.pipeline import create_pipeline as create_pipeline
