"""One folder a stage, and one for the whole."""
