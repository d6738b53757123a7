"""Verifiable rewards: functions (prompts, completions, rows) -> scores, ours and the user's own.

``jaxalign.rewards.ensemble`` combines the scores of a reward model's heads.
"""

from jaxalign.rewards.call import Reward, compute_rewards, load_reward, submit
from jaxalign.rewards.numbers import final_number, number_match
from jaxalign.rewards.text import exact_match, length_cap, length_target, normalise, regex

__all__ = [
    "Reward",
    "compute_rewards",
    "exact_match",
    "final_number",
    "length_cap",
    "length_target",
    "load_reward",
    "normalise",
    "number_match",
    "regex",
    "submit",
]
