"""Prompts: the typed prompt files, the requests rendered from them, and the reading of responses."""
