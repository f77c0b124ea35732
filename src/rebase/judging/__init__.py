"""Judging answers: by a model and by people."""
