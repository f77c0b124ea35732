"""Distil: the task's own inputs, labelled by the teacher."""

from rebase.pipelines.distil.pipeline import create_pipeline as create_pipeline
