"""Reward functions by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jaxalign import rewards
from jaxalign.errors import UserError

FUNCTIONS: Mapping[str, Callable[[], rewards.Reward]] = {
    "number_match": rewards.number_match,
    "exact_match": rewards.exact_match,
}


def load_function(name: str) -> rewards.Reward:
    """Returns a built-in reward function by its name, or the user's own by ``module:function``.

    Raises:
        UserError: if the name is neither.
    """
    if ":" in name:
        return rewards.load_reward(name)
    if name not in FUNCTIONS:
        raise UserError(
            f"Reward {name!r} is not {' or '.join(FUNCTIONS)}, or of the form module:function. Name one of these."
        )
    return FUNCTIONS[name]()
