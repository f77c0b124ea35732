"""Retrieval-based distillation: a task and three examples in, a small expert model out."""

__version__ = "0.1.0"
