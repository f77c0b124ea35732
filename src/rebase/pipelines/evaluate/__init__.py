"""Evaluate: answers and scores of the student and the expert, and of the teacher."""

from rebase.pipelines.evaluate.pipeline import create_pipeline as create_pipeline
from rebase.pipelines.evaluate.pipeline import create_teacher_pipeline as create_teacher_pipeline
