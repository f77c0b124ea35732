"""Compare: every baseline and ReBase, trained and evaluated alike, in one table."""

from rebase.pipelines.compare.pipeline import create_pipeline as create_pipeline
