"""Estimate: what the teacher will cost, before any request is sent."""

from rebase.pipelines.estimate.pipeline import create_pipeline as create_pipeline
