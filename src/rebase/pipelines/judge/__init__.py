"""Judge: what a model says of the systems' answers, and the sheet on which people say it."""

from rebase.pipelines.judge.pipeline import create_pipeline as create_pipeline
