"""Training examples: filters, prompts, requests, verification."""
