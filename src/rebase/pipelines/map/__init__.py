"""Map: people's labels in retrieved datasets become examples, for one request a dataset."""

from rebase.pipelines.map.pipeline import create_pipeline as create_pipeline
