"""Evaluate the teacher: a pipeline of its own, because its requests cost money; the code is in ``evaluate``."""

from rebase.pipelines.evaluate.pipeline import create_teacher_pipeline as create_pipeline

__all__ = ["create_pipeline"]
