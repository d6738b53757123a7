"""Reward functions by name, as configurations give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jaxalign import rewards
from jaxalign.errors import UserError

FUNCTIONS: Mapping[str, Callable[[], rewards.Reward]] = {
    "number_match": rewards.number_match,
    "exact_match": rewards.exact_match,
}


def load_function(name: str) -> rewards.Reward:
    """A reward function by the name of one of ours, or by ``module:function``."""
    if ":" in name:
        return rewards.load_reward(name)
    if name not in FUNCTIONS:
        raise UserError(f"reward.functions: {name!r} is not {', '.join(FUNCTIONS)}, nor of the form module:function.")
    return FUNCTIONS[name]()
