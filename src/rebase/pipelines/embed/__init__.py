"""Embed: every distinct cell value and description as a vector."""

from rebase.pipelines.embed.pipeline import create_pipeline as create_pipeline
