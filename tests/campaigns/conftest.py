"""Campaigns are scripts that take long; they hold no tests to collect."""

collect_ignore_glob = ["*.py"]
