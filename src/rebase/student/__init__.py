"""The student: prompts, training, generation and its adapters."""
