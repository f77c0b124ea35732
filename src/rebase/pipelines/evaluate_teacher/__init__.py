"""Evaluate the teacher, or any model that speaks its protocol, on the task's evaluation set."""

from rebase.pipelines.evaluate_teacher.pipeline import create_pipeline as create_pipeline
