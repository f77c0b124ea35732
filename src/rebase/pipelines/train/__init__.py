"""Train: the student becomes the expert."""

from rebase.pipelines.train.pipeline import create_pipeline as create_pipeline
