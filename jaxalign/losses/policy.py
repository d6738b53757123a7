"""Policy-gradient losses per token: PPO and its relatives.

logps are the policy's log-probabilities of the tokens taken, in nats, old_logps those it had when it took them, and ρ
= exp(logps - old_logps). Losses are differentiable with respect to ``logps`` (``values``) only. How per-token losses
are averaged is part of the algorithm: see ``jaxalign.losses.reductions``.

Per-token losses know no mask: put 0 into masked slots of their inputs, and leave them out of the reduction.
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
    """REINFORCE: -A log π.

    Source: Williams 1992, https://doi.org/10.1007/BF00992696, whose gradient this loss has.

    Args:
      logps: nats, of tokens or of whole sequences, ``[...]``.
      advantages: A, ``[...]``.
    Returns:
      loss, ``[...]``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> reinforce(jnp.array([-1.0, -2.0]), jnp.array([1.0, -0.5]))
    Array([ 1., -1.], dtype=float32)
    """
    logps = check.to_float("logps", logps)
    return -_constant("advantages", advantages, logps) * logps


def ppo_clip(
    logps: Tokens, old_logps: Tokens, advantages: Tokens, *, clip_low: float = 0.2, clip_high: float = 0.2
) -> Tokens:
    """PPO's clipped surrogate: -min(ρA, clip(ρ, 1-lo, 1+hi) A).

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7; two bounds as in DAPO, Yu et al. 2025, arXiv:2503.14476, eq.
    10.

    Args:
      logps, old_logps: nats, of tokens or (RLOO) of whole sequences, ``[...]``.
      advantages: A, ``[...]``.
      clip_low, clip_high: lo and hi.
    Returns:
      loss, ``[...]``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> ppo_clip(jnp.log(jnp.array([0.5, 1.5])), jnp.zeros(2), jnp.array([1.0, 1.0]))
    Array([-0.5, -1.2], dtype=float32)
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
    """Dual-clip PPO, which also bounds the ratio where A < 0: -min(ρA, clip(ρ, 1-lo, 1+hi) A), at most -max_ratio A.

    Source: Ye et al. 2020, arXiv:1912.09729, eq. 5.

    Args:
      logps, old_logps: nats, ``[...]``.
      advantages: A, ``[...]``.
      max_ratio: c, above 1 + clip_high (3 in the paper).
      clip_low, clip_high: lo and hi.
    Returns:
      loss, ``[...]``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> dual_clip(jnp.log(jnp.array([10.0])), jnp.zeros(1), jnp.array([-1.0]), max_ratio=3.0)
    Array([3.], dtype=float32)
    """
    log_ratio, advantages = _log_ratio(logps, old_logps, advantages)
    log_ratio = cap(log_ratio, jnp.log(max_ratio))
    return -clipped_ratio(log_ratio, advantages, clip_low, clip_high) * advantages


def value_clip(values: Tokens, old_values: Tokens, returns: Tokens, *, clip: float = 0.2) -> Tokens:
    """PPO's clipped value loss: ½ max((v - R)², (clip(v, v_old - c, v_old + c) - R)²).

    Source: https://github.com/openai/baselines, ppo2/model.py; analysed in Andrychowicz et al. 2020, arXiv:2006.05990.

    Args:
      values: v, ``[...]``.
      old_values: v_old, the values when the tokens were taken, ``[...]``.
      returns: R, ``[...]``.
      clip: c.
    Returns:
      loss, ``[...]``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> value_clip(jnp.array([1.0]), jnp.array([0.0]), jnp.array([1.0]))
    Array([0.3200...], dtype=float32)
    """
    values = check.to_float("values", values)
    old_values = _constant("old_values", old_values, values, "values")
    returns = _constant("returns", returns, values, "values")
    clipped = jnp.clip(values, old_values - clip, old_values + clip)
    return jnp.maximum((values - returns) ** 2, (clipped - returns) ** 2) / 2


def cispo(logps: Tokens, old_logps: Tokens, advantages: Tokens, *, max_ratio: float) -> Tokens:
    """Clipped importance sampling: -stop_gradient(min(ρ, max_ratio)) A log π; every token keeps a gradient.

    Source: MiniMax-M1, 2025, arXiv:2506.13585, eqs. 4 and 5, without a lower bound.

    Args:
      logps, old_logps: nats, ``[...]``.
      advantages: A, ``[...]``.
      max_ratio: an absolute bound on the weight (5.0, say), not an ε.
    Returns:
      loss, ``[...]``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> cispo(jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([1.0]), max_ratio=5.0)
    Array([5.], dtype=float32)
    """
    log_ratio, advantages = _log_ratio(logps, old_logps, advantages)
    weight = jnp.exp(cap(jax.lax.stop_gradient(log_ratio), jnp.log(max_ratio)))
    return -weight * advantages * jnp.asarray(logps)


def sapo(
    logps: Tokens, old_logps: Tokens, advantages: Tokens, *, temperature_pos: float = 1.0, temperature_neg: float = 1.05
) -> Tokens:
    """Soft adaptive policy optimisation, a smooth gate for a clip: -(4/τ) σ(τ(ρ - 1)) A, τ by the sign of A.

    Source: Gao et al. 2025, arXiv:2511.20347. The gradient is ρA at ρ = 1 and fades on both sides.

    Args:
      logps, old_logps: nats, ``[...]``.
      advantages: A, ``[...]``.
      temperature_pos, temperature_neg: τ where A > 0, and elsewhere.
    Returns:
      loss, ``[...]``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> sapo(jnp.array([-1.0]), jnp.array([-1.0]), jnp.array([1.0]))
    Array([-2.], dtype=float32)
    """
    log_ratio, advantages = _log_ratio(logps, old_logps, advantages)
    tau = jnp.where(advantages > 0, temperature_pos, temperature_neg).astype(log_ratio.dtype)
    # Far beyond the gate's reach, where σ is 1 and flat: keeps ρ finite.
    ratio = jnp.exp(cap(log_ratio, largest_exponent(log_ratio.dtype)))
    return -(4 / tau) * jax.nn.sigmoid(tau * (ratio - 1)) * advantages


def clipped_ratio(log_ratio: Tokens, advantages: Tokens, clip_low: float, clip_high: float) -> Tokens:
    """The ρ that min(ρA, clip(ρ)A) picks: at most 1+hi where A >= 0, at least 1-lo elsewhere.

    Bounded before the exponential, so that no gradient is 0 · ∞ where ρ overflows.

    >>> clipped_ratio(jnp.array([500.0, -500.0]), jnp.array([1.0, -1.0]), 0.2, 0.2)
    Array([1.2, 0.8], dtype=float32)
    """
    above = cap(log_ratio, jnp.log1p(clip_high))
    below = -cap(-log_ratio, -jnp.log(jnp.maximum(1 - clip_low, 0)))
    return jnp.exp(jnp.where(advantages >= 0, above, below))


def cap(x: Array, bound: ArrayLike) -> Array:
    """min(x, bound), whose gradient at a tie is x's whole (``jnp.minimum`` halves it).

    >>> cap(jnp.array([1.0, 3.0]), 2.0)
    Array([1., 2.], dtype=float32)
    """
    return jnp.where(x > bound, jnp.asarray(bound, x.dtype), x)


def _log_ratio(logps: Tokens, old_logps: Tokens, advantages: Tokens) -> tuple[Tokens, Tokens]:
    """(log ρ, A), checked; old log-probs and advantages are constants."""
    logps = check.to_float("logps", logps)
    old_logps = check.to_float("old_logps", old_logps)
    check.same_shape("old_logps", old_logps, logps.shape, "logps")
    log_ratio = logps - jax.lax.stop_gradient(old_logps)
    return log_ratio, _constant("advantages", advantages, log_ratio)


def _constant(name: str, value: Array, like: Array, like_name: str = "logps") -> Array:
    """``value`` in the shape and type of ``like``, without gradient; integers are welcome."""
    value = check.to_number(name, value)
    check.same_shape(name, value, like.shape, like_name)
    return jax.lax.stop_gradient(value).astype(like.dtype)
