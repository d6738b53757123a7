"""Policy-gradient losses per token: PPO and its relatives.

``logps`` are the policy's log-probabilities of the sampled tokens, in nats. ``old_logps`` are those of the policy that
sampled them, and ρ = exp(logps - old_logps). Losses are differentiable with respect to ``logps`` (or ``values``) only.
How per-token losses are averaged is part of the algorithm: see ``jaxalign.losses.reductions``.

Per-token losses take no mask: put 0 into masked slots of their inputs, and mask the reduction.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxalign import _checks as check
from jaxalign.losses.divergences import largest_exponent

Tokens = Float[Array, "*B"]


def reinforce(logps: Tokens, advantages: Tokens) -> Tokens:
    """Computes the loss whose gradient is REINFORCE's.

        -A log π

    Args:
        logps: log-probabilities under the policy, nats, of tokens or of whole sequences, ``[...]``.
        advantages: A, ``[...]``.

    Returns:
        loss, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> reinforce(jnp.array([-1.0, -2.0]), jnp.array([1.0, -0.5]))
    Array([ 1., -1.], dtype=float32)

    Source: Williams 1992, https://doi.org/10.1007/BF00992696.
    """
    logps = check.to_float("logps", logps)
    return -check.to_constant("advantages", advantages, logps, "logps") * logps


def ppo_clip(
    logps: Tokens, old_logps: Tokens, advantages: Tokens, *, clip_low: float = 0.2, clip_high: float = 0.2
) -> Tokens:
    """Computes PPO's clipped surrogate loss.

        -min(ρA, clip(ρ, 1-lo, 1+hi) A)

    Args:
        logps: log-probabilities under the policy, nats, of tokens or (RLOO) of whole sequences, ``[...]``.
        old_logps: the same under the policy that sampled; held constant.
        advantages: A, ``[...]``.
        clip_low: lo, distance of the lower bound from 1.
        clip_high: hi, distance of the upper bound from 1.

    Returns:
        loss, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> ppo_clip(jnp.log(jnp.array([0.5, 1.5])), jnp.zeros(2), jnp.array([1.0, 1.0]))
    Array([-0.5, -1.2], dtype=float32)

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7; two bounds as in DAPO, Yu et al. 2025, arXiv:2503.14476,
    eq. 10.
    """
    log_ratio, advantages = _log_ratio(logps, old_logps, advantages)
    return -clipped_ratio(log_ratio, advantages, clip_low, clip_high) * advantages


def dual_clip(
    logps: Tokens,
    old_logps: Tokens,
    advantages: Tokens,
    *,
    max_ratio: float,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Tokens:
    """Computes dual-clip PPO, which also bounds the ratio where A < 0.

        -min(ρA, clip(ρ, 1-lo, 1+hi) A),  and at most  -c A  where A < 0

    Args:
        logps: log-probabilities of the tokens under the policy, nats, ``[...]``.
        old_logps: the same under the policy that sampled; held constant.
        advantages: A, ``[...]``.
        max_ratio: c, above 1 + clip_high (3 in the paper).
        clip_low: lo, distance of the lower bound from 1.
        clip_high: hi, distance of the upper bound from 1.

    Returns:
        loss, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> dual_clip(jnp.log(jnp.array([10.0])), jnp.zeros(1), jnp.array([-1.0]), max_ratio=3.0)
    Array([3.], dtype=float32)

    Source: Ye et al. 2020, arXiv:1912.09729, eq. 5.
    """
    log_ratio, advantages = _log_ratio(logps, old_logps, advantages)
    return -clipped_ratio(cap(log_ratio, jnp.log(max_ratio)), advantages, clip_low, clip_high) * advantages


def value_clip(values: Tokens, old_values: Tokens, returns: Tokens, *, clip: float = 0.2) -> Tokens:
    """Computes PPO's clipped value loss.

        ½ max((v - R)², (clip(v, v_old - c, v_old + c) - R)²)

    Args:
        values: v, ``[...]``.
        old_values: v_old, the values when the tokens were sampled, ``[...]``.
        returns: R, ``[...]``.
        clip: c.

    Returns:
        loss, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> value_clip(jnp.array([1.0]), jnp.array([0.0]), jnp.array([1.0]))
    Array([0.3200...], dtype=float32)

    Source: https://github.com/openai/baselines, ppo2/model.py; analysed in Andrychowicz et al. 2020, arXiv:2006.05990.
    """
    values = check.to_float("values", values)
    old_values = check.to_constant("old_values", old_values, values, "values")
    returns = check.to_constant("returns", returns, values, "values")
    clipped = jnp.clip(values, old_values - clip, old_values + clip)
    return jnp.maximum((values - returns) ** 2, (clipped - returns) ** 2) / 2


def cispo(logps: Tokens, old_logps: Tokens, advantages: Tokens, *, max_ratio: float) -> Tokens:
    """Computes clipped importance sampling (CISPO), in which every token keeps a gradient.

        -stop_gradient(min(ρ, max_ratio)) A log π

    Args:
        logps: log-probabilities of the tokens under the policy, nats, ``[...]``.
        old_logps: the same under the policy that sampled; held constant.
        advantages: A, ``[...]``.
        max_ratio: absolute bound on the weight (for example 5.0), not an ε.

    Returns:
        loss, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> cispo(jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([1.0]), max_ratio=5.0)
    Array([5.], dtype=float32)

    Source: MiniMax-M1, 2025, arXiv:2506.13585, eqs. 4 and 5, without a lower bound.
    """
    log_ratio, advantages = _log_ratio(logps, old_logps, advantages)
    weight = jnp.exp(cap(jax.lax.stop_gradient(log_ratio), jnp.log(max_ratio)))
    return -weight * advantages * jnp.asarray(logps)


def sapo(
    logps: Tokens, old_logps: Tokens, advantages: Tokens, *, temperature_pos: float = 1.0, temperature_neg: float = 1.05
) -> Tokens:
    """Computes soft adaptive policy optimisation (SAPO), which replaces PPO's clip by a smooth gate.

        -(4/τ) σ(τ(ρ - 1)) A

    The gradient is ρA at ρ = 1 and fades on both sides.

    Args:
        logps: log-probabilities of the tokens under the policy, nats, ``[...]``.
        old_logps: the same under the policy that sampled; held constant.
        advantages: A, ``[...]``.
        temperature_pos: τ where A > 0.
        temperature_neg: τ elsewhere.

    Returns:
        loss, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> sapo(jnp.array([-1.0]), jnp.array([-1.0]), jnp.array([1.0]))
    Array([-2.], dtype=float32)

    Source: Gao et al. 2025, arXiv:2511.20347.
    """
    log_ratio, advantages = _log_ratio(logps, old_logps, advantages)
    tau = jnp.where(advantages > 0, temperature_pos, temperature_neg).astype(log_ratio.dtype)
    # The cap keeps ρ finite. It lies far beyond the gate's reach, where σ is 1 and its slope 0.
    ratio = jnp.exp(cap(log_ratio, largest_exponent(log_ratio.dtype)))
    return -(4 / tau) * jax.nn.sigmoid(tau * (ratio - 1)) * advantages


def clipped_ratio(log_ratio: Tokens, advantages: Tokens, clip_low: float, clip_high: float) -> Tokens:
    """Returns the ratio ρ that min(ρA, clip(ρ)A) selects.

    It is at most 1+hi where A >= 0, at least 1-lo elsewhere. The bound applies before the exponential, so that no
    gradient is 0 · ∞ where ρ overflows.

    >>> clipped_ratio(jnp.array([500.0, -500.0]), jnp.array([1.0, -1.0]), 0.2, 0.2)
    Array([1.2, 0.8], dtype=float32)
    """
    above = cap(log_ratio, jnp.log1p(clip_high))
    below = -cap(-log_ratio, -jnp.log(jnp.maximum(1 - clip_low, 0)))
    return jnp.exp(jnp.where(advantages >= 0, above, below))


def cap(x: Array, bound: ArrayLike) -> Array:
    """Returns min(x, bound), with the whole gradient of x at a tie (``jnp.minimum`` halves it).

    >>> cap(jnp.array([1.0, 3.0]), 2.0)
    Array([1., 2.], dtype=float32)
    """
    return jnp.where(x > bound, jnp.asarray(bound, x.dtype), x)


def _log_ratio(logps: Tokens, old_logps: Tokens, advantages: Tokens) -> tuple[Tokens, Tokens]:
    """Checks the arguments and returns (log ρ, A), with old log-probabilities and advantages held constant."""
    logps, old_logps = check.to_floats(logps=logps, old_logps=old_logps)
    log_ratio = logps - jax.lax.stop_gradient(old_logps)
    return log_ratio, check.to_constant("advantages", advantages, log_ratio, "logps")
