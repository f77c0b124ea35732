"""The expert in use: its answers, and its export to other servers."""
