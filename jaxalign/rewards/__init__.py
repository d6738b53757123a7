"""Verifiable rewards: functions (prompts, completions, rows) -> scores, ours and the user's own.

``jaxalign.rewards.ensemble`` combines the scores of a reward model's heads.
"""

from jaxalign.rewards.call import Reward as Reward
from jaxalign.rewards.call import compute_rewards as compute_rewards
from jaxalign.rewards.call import load_reward as load_reward
from jaxalign.rewards.call import submit as submit
from jaxalign.rewards.numbers import final_number as final_number
from jaxalign.rewards.numbers import number_match as number_match
from jaxalign.rewards.text import exact_match as exact_match
from jaxalign.rewards.text import length_cap as length_cap
from jaxalign.rewards.text import length_target as length_target
from jaxalign.rewards.text import normalise as normalise
from jaxalign.rewards.text import regex as regex
