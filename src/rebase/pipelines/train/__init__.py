"""Train: fine-tune the student on the examples."""

from rebase.pipelines.train.pipeline import create_pipeline as create_pipeline
