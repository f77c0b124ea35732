"""Mix: one training set of examples of several origins."""

from rebase.pipelines.mix.pipeline import create_pipeline as create_pipeline
