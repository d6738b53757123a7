"""Benchmarks are run by hand. Pytest, which looks for doctests in every file, ignores this directory."""

collect_ignore_glob = ["*.py"]
