"""Benchmarks are run by hand: pytest, which looks for doctests in every file, leaves this folder alone."""

collect_ignore_glob = ["*.py"]
