"""Judge: a model grades and compares the systems' answers, people grade a blind sheet, and both are compared."""

from rebase.pipelines.judge.pipeline import create_pipeline as create_pipeline
