"""The LLM side: one small protocol, its providers, and the store that makes every response paid for once."""
