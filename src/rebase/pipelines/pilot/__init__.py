"""Pilot: the teacher's responses to a few rows, and what a full run will cost."""

from rebase.pipelines.pilot.pipeline import create_pipeline as create_pipeline
