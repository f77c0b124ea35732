"""Report: diversity, teacher usage, plots, the run record and one page that shows everything."""

from rebase.pipelines.report.pipeline import create_pipeline as create_pipeline
