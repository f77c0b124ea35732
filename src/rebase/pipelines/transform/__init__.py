"""Transform: retrieved rows become training examples."""

from rebase.pipelines.transform.pipeline import create_pipeline as create_pipeline
