"""Filters between the ranking and the teacher (docs/method.md section 4): rows that must not, or need not, be sent."""
