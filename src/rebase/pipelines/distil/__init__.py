"""Distil: the task's own inputs, labeled by the teacher."""

from rebase.pipelines.distil.pipeline import create_pipeline as create_pipeline
