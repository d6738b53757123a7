"""Comparison of methods in the testbed: what each one gains from a common start, and what it costs."""
