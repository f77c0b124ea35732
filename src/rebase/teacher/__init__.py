"""The teacher: one protocol, its providers, and the response cache, so that no response is paid for twice."""
