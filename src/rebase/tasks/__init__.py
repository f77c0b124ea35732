"""Tasks: their files, evaluation items, extraction, metrics and scores."""
