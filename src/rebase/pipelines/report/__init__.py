"""Report: everything about a run on one page, and the record by which runs are compared."""

from rebase.pipelines.report.pipeline import create_pipeline as create_pipeline
