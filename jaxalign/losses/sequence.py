"""Policy-gradient losses of whole sequences: GSPO, GMPO, VESPO, A*-PO.

``logps`` are the policy's log-probabilities of a sequence's tokens, in nats. ``old_logps`` are those of the policy that
sampled them, and ρ = exp(logps - old_logps). Values in masked slots have no influence. Losses are differentiable with
respect to ``logps`` only.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign import _checks as check
from jaxalign.losses.policy import cap, clipped_ratio
from jaxalign.losses.weighting import masked_mean


def gspo(
    logps: Float[Array, "*B T"],
    old_logps: Float[Array, "*B T"],
    advantages: Float[Array, "*B"],
    mask: Bool[Array, "*B T"],
    *,
    clip_low: float,
    clip_high: float,
) -> Float[Array, "*B"]:
    """Computes group sequence policy optimisation (GSPO): PPO's clip on a ratio per sequence.

        -min(sA, clip(s, 1-lo, 1+hi) A),        s = exp(mean_t log ρ_t)

    The paper's clips are far narrower than PPO's: 3e-4 and 4e-4.

    Args:
        logps: log-probabilities of the tokens under the policy, nats, ``[..., T]``.
        old_logps: the same under the policy that sampled; held constant.
        advantages: A, one per sequence, ``[...]``.
        mask: True on the sequence's tokens, ``[..., T]``.
        clip_low: lo, distance of the lower bound from 1.
        clip_high: hi, distance of the upper bound from 1.

    Returns:
        loss per sequence, ``[...]``; 0 where no token counts.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> logps, mask = jnp.array([[-1.0, -2.0]]), jnp.array([[True, True]])
    >>> gspo(logps, logps, jnp.array([1.5]), mask, clip_low=3e-4, clip_high=4e-4)
    Array([-1.5], dtype=float32)

    Source: Zheng et al. 2025, arXiv:2507.18071, eqs. 5 and 7.
    """
    log_ratio, advantages, mask = _sequences(logps, old_logps, advantages, mask)
    return -clipped_ratio(masked_mean(log_ratio, mask), advantages, clip_low, clip_high) * advantages


def gmpo(
    logps: Float[Array, "*B T"],
    old_logps: Float[Array, "*B T"],
    advantages: Float[Array, "*B"],
    mask: Bool[Array, "*B T"],
    *,
    clip: float = 0.4,
) -> Float[Array, "*B"]:
    """Computes geometric-mean policy optimisation (GMPO), which clips each token's log-ratio.

        -A exp(mean_t x_t),        x_t = min(log ρ_t, c) where A > 0, else max(log ρ_t, -c)

    Args:
        logps: log-probabilities of the tokens under the policy, nats, ``[..., T]``.
        old_logps: the same under the policy that sampled; held constant.
        advantages: A, one per sequence, ``[...]``.
        mask: True on the sequence's tokens, ``[..., T]``.
        clip: c, bound on a token's log-ratio, nats.

    Returns:
        loss per sequence, ``[...]``; 0 where no token counts.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> logps, mask = jnp.array([[-1.0, -2.0]]), jnp.array([[True, True]])
    >>> gmpo(logps, logps, jnp.array([1.5]), mask)
    Array([-1.5], dtype=float32)

    Source: Zhao et al. 2025, arXiv:2507.20673.
    """
    log_ratio, advantages, mask = _sequences(logps, old_logps, advantages, mask)
    clipped = jnp.where((advantages > 0)[..., None], cap(log_ratio, clip), -cap(-log_ratio, clip))
    return -jnp.exp(masked_mean(clipped, mask)) * advantages


def vespo(
    logps: Float[Array, "*B T"],
    old_logps: Float[Array, "*B T"],
    advantages: Float[Array, "*B"],
    mask: Bool[Array, "*B T"],
    *,
    k_pos: float = 2.0,
    lambda_pos: float = 3.0,
    k_neg: float = 3.0,
    lambda_neg: float = 2.0,
) -> Float[Array, "*B T"]:
    """Computes variational sequence-level soft policy optimisation (VESPO), per token.

        -stop_gradient(w^k exp(λ(1 - w))) A log π,        log w = clip(Σ_t log ρ_t, log 1e-8, 20)

    k and λ depend on the sign of A.

    Args:
        logps: log-probabilities of the tokens under the policy, nats, ``[..., T]``.
        old_logps: the same under the policy that sampled; held constant.
        advantages: A, one per sequence, ``[...]``.
        mask: True on the sequence's tokens, ``[..., T]``.
        k_pos: k where A >= 0.
        lambda_pos: λ where A >= 0.
        k_neg: k elsewhere.
        lambda_neg: λ elsewhere.

    Returns:
        loss per token, ``[..., T]``, 0 where masked.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> logps, mask = jnp.array([[-1.0, -2.0]]), jnp.array([[True, False]])
    >>> vespo(logps, logps, jnp.array([1.5]), mask)
    Array([[1.5, 0. ]], dtype=float32)

    Source: Shen et al. 2026, arXiv:2602.10693.
    """
    log_ratio, advantages, mask = _sequences(logps, old_logps, advantages, mask)
    log_ratio = jnp.clip(jax.lax.stop_gradient(log_ratio), -20, 20)
    log_w = jnp.clip(jnp.sum(log_ratio, axis=-1), jnp.log(1e-8), 20)
    k = jnp.where(advantages >= 0, k_pos, k_neg)
    rate = jnp.where(advantages >= 0, lambda_pos, lambda_neg)
    weight = jnp.exp(k * log_w + rate * (1 - jnp.exp(log_w))).astype(log_ratio.dtype)
    return jnp.where(mask, -(weight * advantages)[..., None] * jnp.where(mask, jnp.asarray(logps), 0), 0)


def a_star_po(
    logps: Float[Array, "*B"],
    ref_logps: Float[Array, "*B"],
    rewards: Float[Array, "*B"],
    optimal_values: Float[Array, "*B"],
    *,
    beta: float,
) -> Float[Array, "*B"]:
    """Computes A*-PO, a regression onto the optimal advantage.

        (β(log π - log π_ref) - (r - V*))²

    Args:
        logps: log-probabilities of whole completions under the policy, nats, ``[...]``.
        ref_logps: the same under the reference; held constant.
        rewards: r, ``[...]``.
        optimal_values: V* of each completion's prompt from ``optimal_value``, ``[...]``.
        beta: β, strength of the pull to the reference.

    Returns:
        loss per completion, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> a_star_po(jnp.array([-2.0]), jnp.array([-3.0]), jnp.array([1.0]), jnp.array([0.5]), beta=0.1)
    Array([0.1600...], dtype=float32)

    Source: Brantley et al. 2025, arXiv:2505.20686.
    """
    logps, ref_logps = check.to_floats(logps=logps, ref_logps=ref_logps)
    rewards = check.to_constant("rewards", rewards, logps, "logps")
    optimal_values = check.to_constant("optimal_values", optimal_values, logps, "logps")
    return (beta * (logps - jax.lax.stop_gradient(ref_logps)) - (rewards - optimal_values)) ** 2


def optimal_value(rewards: Float[Array, "*B K"], *, beta: float) -> Float[Array, "*B"]:
    """Estimates the value V* of the optimal policy under a KL penalty from K samples of the reference.

        V* = β log mean_k exp(r_k / β)

    Args:
        rewards: of K samples of each prompt, ``[..., K]``.
        beta: β, price of a nat of KL.

    Returns:
        V*, ``[...]``: between the mean (large β) and the maximum (β → 0) of the rewards.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> optimal_value(jnp.array([[0.0, 1.0]]), beta=0.5)
    Array([0.7168...], dtype=float32)

    Source: Brantley et al. 2025, arXiv:2505.20686.
    """
    rewards = check.to_number("rewards", rewards, "[..., K]")
    return beta * (jax.nn.logsumexp(rewards / beta, axis=-1) - jnp.log(rewards.shape[-1]).astype(rewards.dtype))


def off_policy_mask(
    logps: Float[Array, "*B T"],
    old_logps: Float[Array, "*B T"],
    advantages: Float[Array, "*B"],
    mask: Bool[Array, "*B T"],
    *,
    max_kl: float,
) -> Bool[Array, "*B"]:
    """Returns a mask of the sequences that are close enough to the policy to train on.

        A >= 0  or  mean_t(-log ρ_t) <= max_kl

    Args:
        logps: log-probabilities of the tokens under the policy, nats, ``[..., T]``.
        old_logps: the same under the policy that sampled; held constant.
        advantages: A, one per sequence, ``[...]``.
        mask: True on the sequence's tokens, ``[..., T]``.
        max_kl: nats per token.

    Returns:
        True where the sequence stays in the loss, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> logps, old_logps = jnp.array([[-3.0], [-3.0]]), jnp.array([[-1.0], [-1.0]])
    >>> off_policy_mask(logps, old_logps, jnp.array([1.0, -1.0]), jnp.ones((2, 1), bool), max_kl=1.0)
    Array([ True, False], dtype=bool)

    Source: DeepSeek-AI 2025 (DeepSeek-V3.2), arXiv:2512.02556, eq. 9.
    """
    log_ratio, advantages, mask = _sequences(logps, old_logps, advantages, mask)
    return (advantages >= 0) | (-masked_mean(log_ratio, mask) <= max_kl)


def _sequences(
    logps: Float[Array, "*B T"], old_logps: Float[Array, "*B T"], advantages: Float[Array, "*B"], mask: Array
) -> tuple[Array, Array, Array]:
    """Checks the arguments and returns (log ρ, A, mask): log ρ is 0 where masked, A is 0 where no token counts."""
    logps, old_logps = check.to_floats(logps=logps, old_logps=old_logps)
    check.has_axis("logps", logps, "[..., T]")
    mask = check.to_mask("mask", mask, logps.shape, "logps")
    log_ratio = jnp.where(mask, logps - jax.lax.stop_gradient(old_logps), 0)
    sequences = jax.ShapeDtypeStruct(logps.shape[:-1], log_ratio.dtype)
    advantages = check.to_constant("advantages", advantages, sequences, "logps without its last axis")
    return log_ratio, jnp.where(jnp.any(mask, axis=-1), advantages, 0), mask
