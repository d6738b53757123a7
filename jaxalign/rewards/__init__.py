"""Verifiable rewards: functions (prompts, completions, rows) -> scores, a weighted sum of them, your own by name.

``jaxalign.rewards.ensemble`` makes one score of a reward model's several heads.
"""

from jaxalign.rewards.call import Reward, WeightedScores, compute_rewards, load_reward, submit, weighted_sum
from jaxalign.rewards.numbers import final_number, number_match
from jaxalign.rewards.text import exact_match, length_cap, length_target, normalise, regex

__all__ = [
    "Reward",
    "WeightedScores",
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
    "weighted_sum",
]
