"""Losses of reward models: Bradley-Terry, Plackett-Luce, centering."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxalign import _checks as check

Rewards = Float[Array, "*B"]


def bradley_terry(chosen_rewards: Rewards, rejected_rewards: Rewards, *, margin: ArrayLike = 0.0) -> Rewards:
    """Computes the Bradley-Terry loss of a reward model.

        -log σ(r_c - r_r - margin)

    Args:
        chosen_rewards: r_c, scores of the chosen completions, ``[...]``.
        rejected_rewards: r_r, scores of the rejected completions, ``[...]``.
        margin: how much better the chosen completion is rated, a scalar or ``[...]``; held constant.

    Returns:
        loss per pair, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> bradley_terry(jnp.array([1.0]), jnp.array([0.0]))
    Array([0.3132...], dtype=float32)

    Source: Ouyang et al. 2022, arXiv:2203.02155, eq. 1; the margin: Touvron et al. 2023 (Llama 2), arXiv:2307.09288,
    eq. 2.
    """
    r_c, r_r = check.to_floats(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    return -log_sigmoid(r_c - r_r - check.to_constant("margin", margin, r_c, "chosen_rewards", or_scalar=True))


def reward_centering(chosen_rewards: Rewards, rejected_rewards: Rewards) -> Rewards:
    """Computes a penalty that keeps rewards near zero.

        (r_c + r_r)²

    The caller multiplies it with a small coefficient.

    Args:
        chosen_rewards: r_c, scores of the chosen completions, ``[...]``.
        rejected_rewards: r_r, scores of the rejected completions, ``[...]``.

    Returns:
        penalty per pair, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> reward_centering(jnp.array([1.0]), jnp.array([0.5]))
    Array([2.25], dtype=float32)

    Source: Eisenstein et al. 2023, arXiv:2312.09244, eq. 2.
    """
    r_c, r_r = check.to_floats(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    return (r_c + r_r) ** 2


def plackett_luce(rewards: Float[Array, "*B K"], mask: Bool[Array, "*B K"] | None = None) -> Float[Array, "*B"]:
    """Computes the negative log-likelihood of a ranking under the Plackett-Luce model.

        -Σ_k [r_k - log Σ_{j≥k} exp r_j]

    With K = 2 it is Bradley-Terry.

    Args:
        rewards: scores of the K candidates, the best first, ``[..., K]``.
        mask: True on existing candidates, ``[..., K]``; all by default.

    Returns:
        loss per ranking, ``[...]``; 0 where no candidate counts.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> plackett_luce(jnp.array([[2.0, 1.0, 0.0]]))
    Array([0.7208...], dtype=float32)

    Source: Plackett 1975, https://doi.org/10.2307/2346567; for preferences, Rafailov et al. 2023, arXiv:2305.18290, eq.
    18.
    """
    rewards = check.to_float("rewards", rewards, "[..., K]")
    mask = jnp.ones(rewards.shape, bool) if mask is None else check.to_mask("mask", mask, rewards.shape, "rewards")
    rewards = jnp.where(mask, rewards, 0)
    # Row k of this [K, K] marks the candidates left at rank k. A masked one includes itself, so that no sum is empty.
    itself = jnp.eye(rewards.shape[-1], dtype=bool)
    left = jnp.triu(jnp.ones_like(itself)) & mask[..., None, :] | itself
    log_total = jax.nn.logsumexp(jnp.broadcast_to(rewards[..., None, :], left.shape), axis=-1, where=left)
    return jnp.sum(jnp.where(mask, log_total - rewards, 0), axis=-1)
