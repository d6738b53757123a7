"""Campaigns are long scripts; pytest collects only their small versions in ``test_*.py``."""

collect_ignore = ["alignment.py", "kto_known_reward.py", "online.py", "rlaif.py"]
