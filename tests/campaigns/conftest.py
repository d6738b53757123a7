"""Campaigns are scripts that take long: of this folder, only the small versions in ``test_*.py`` are collected."""

collect_ignore = ["alignment.py", "kto_known_reward.py", "online.py", "rlaif.py"]
