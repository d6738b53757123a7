"""What dashboards show, as pure functions of arrays: each metric a (sum, count), or moments, that add.

Add the tuples over microbatches, devices and steps, and divide once, at the end (``mean``, ``explained_variance``): a
mean of means is another number. Nothing here carries a gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign import _checks as check
from jaxalign.logprobs import kl_estimate
from jaxalign.losses.pairwise import Logps, log_ratios

T = TypeVar("T")
SumCount = tuple[Float[Array, ""], Float[Array, ""]]
Metrics = dict[str, SumCount]


class Largest(NamedTuple):
    """The largest of values that are not negative, a metric of which ``add`` takes the larger one."""

    value: Float[Array, ""]


def sum_count(values: Float[Array, "*B"], mask: Bool[Array, "*B"] | None = None) -> SumCount:
    """(Σ of the values that count, how many they are).

    Args:
      values: any shape.
      mask: which of them count, all by default; whatever stands in the others stays out.
    Returns:
      (sum, count), two scalars.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> sum_count(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False]))
    (Array(4., dtype=float32), Array(2., dtype=float32))
    """
    values = jax.lax.stop_gradient(check.to_number("values", values))
    mask = jnp.ones(values.shape, bool) if mask is None else check.to_mask("mask", mask, values.shape, "values")
    return jnp.sum(jnp.where(mask, values, 0)), jnp.sum(mask).astype(values.dtype)


def largest(values: Float[Array, "*B"], mask: Bool[Array, "*B"] | None = None) -> Largest:
    """The largest of the values that count, 0 if none is larger.

    Args:
      values: any shape.
      mask: which of them count, all by default.
    Returns:
      ``Largest``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> add(largest(jnp.array([1.0, 3.0]), jnp.array([True, False])), largest(jnp.array([2.0])))
    Largest(value=Array(2., dtype=float32))
    """
    values = jax.lax.stop_gradient(check.to_number("values", values))
    mask = jnp.ones(values.shape, bool) if mask is None else check.to_mask("mask", mask, values.shape, "values")
    return Largest(jnp.max(jnp.where(mask, values, 0), initial=0))


def add(metrics: T, more: T) -> T:
    """The metrics of two batches together: sums, counts and moments added, the larger of two ``Largest``.

    >>> add({"kl": (1.0, 2.0)}, {"kl": (3.0, 2.0)})
    {'kl': (4.0, 4.0)}
    """

    def join(one: Any, other: Any) -> Any:
        return Largest(jnp.maximum(one.value, other.value)) if isinstance(one, Largest) else one + other

    return jax.tree.map(join, metrics, more, is_leaf=lambda x: isinstance(x, Largest))


def mean(metrics: Mapping[str, SumCount | Largest]) -> dict[str, Float[Array, ""]]:
    """Each metric's sum over its count, NaN where nothing counted; the largest as it is.

    >>> mean({"kl": (jnp.array(4.0), jnp.array(8.0))})
    {'kl': Array(0.5, dtype=float32, weak_type=True)}
    """
    return {name: m.value if isinstance(m, Largest) else m[0] / m[1] for name, m in metrics.items()}


def preference_metrics(
    policy_chosen_logps: Logps,
    policy_rejected_logps: Logps,
    reference_chosen_logps: Logps,
    reference_rejected_logps: Logps,
    mask: Bool[Array, "*B"] | None = None,
    *,
    beta: float,
) -> Metrics:
    """Implicit rewards β log(π/π_ref) of pairs, their margins, how often the chosen one leads, and log-probs.

    Args:
      policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: nats, ``[...]``.
      mask: which pairs count; all by default.
      beta: scale of the rewards.
    Returns:
      ``rewards/chosen``, ``rewards/rejected``, ``rewards/margins``, ``rewards/accuracies`` (a tie counts half),
      ``logps/chosen`` and ``logps/rejected``, each as (sum, count).
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> pc, pr, rc, rr = jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0])
    >>> preference_metrics(pc, pr, rc, rr, beta=0.5)["rewards/margins"]
    (Array(1., dtype=float32), Array(1., dtype=float32))
    """
    h_c, h_r = log_ratios(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    margins = beta * (h_c - h_r)
    values = {
        "rewards/chosen": beta * h_c,
        "rewards/rejected": beta * h_r,
        "rewards/margins": margins,
        "rewards/accuracies": (jnp.sign(margins) + 1) / 2,
        "logps/chosen": jnp.asarray(policy_chosen_logps),
        "logps/rejected": jnp.asarray(policy_rejected_logps),
    }
    return {name: sum_count(value, mask) for name, value in values.items()}


def reward_metrics(chosen_rewards: Logps, rejected_rewards: Logps, mask: Bool[Array, "*B"] | None = None) -> Metrics:
    """Scores of pairs by a reward model, their margins, and how often the chosen one leads.

    Args:
      chosen_rewards, rejected_rewards: scores, ``[...]``.
      mask: which pairs count; all by default.
    Returns:
      ``rewards/chosen``, ``rewards/rejected``, ``rewards/margins`` and ``rewards/accuracies`` (a tie counts half),
      each as (sum, count).
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> reward_metrics(jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0]))["rewards/accuracies"]
    (Array(1., dtype=float32), Array(2., dtype=float32))
    """
    r_c, r_r = check.real(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    values = {
        "rewards/chosen": r_c,
        "rewards/rejected": r_r,
        "rewards/margins": r_c - r_r,
        "rewards/accuracies": (jnp.sign(r_c - r_r) + 1) / 2,
    }
    return {name: sum_count(value, mask) for name, value in values.items()}


def policy_metrics(
    logps: Float[Array, "*B"],
    old_logps: Float[Array, "*B"],
    advantages: Float[Array, "*B"],
    mask: Bool[Array, "*B"] | None = None,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Metrics:
    """How far a policy has moved from the one that sampled, and how much of it ``ppo_clip`` clips.

    Args:
      logps, old_logps: nats, ``[...]``.
      advantages: A, ``[...]``.
      mask: which tokens count; all by default.
      clip_low, clip_high: as in ``ppo_clip``.
    Returns:
      ``policy/approxkl_avg`` (k3 of KL(π_old ‖ π), which the old policy's tokens estimate), ``policy/clipfrac_avg``
      and its two sides ``policy/clipfrac_low`` (ρ < 1-lo, A < 0) and ``policy/clipfrac_high`` (ρ > 1+hi, A > 0), and
      ``policy/ratio``, each as (sum, count).
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> old, advantages = jnp.zeros(2), jnp.array([1.0, -1.0])
    >>> policy_metrics(jnp.log(jnp.array([1.5, 1.5])), old, advantages)["policy/clipfrac_avg"]
    (Array(1., dtype=float32), Array(2., dtype=float32))
    """
    logps, old_logps = check.real(logps=logps, old_logps=old_logps)
    advantages = check.to_number("advantages", advantages)
    check.same_shape("advantages", advantages, logps.shape, "logps")
    ratio = jnp.exp(logps - old_logps)
    low = (ratio < 1 - clip_low) & (advantages < 0)
    high = (ratio > 1 + clip_high) & (advantages > 0)
    values = {
        "policy/approxkl_avg": kl_estimate(old_logps, logps, estimator="k3"),
        "policy/clipfrac_avg": low | high,
        "policy/clipfrac_low": low,
        "policy/clipfrac_high": high,
        "policy/ratio": ratio,
    }
    return {name: sum_count(value.astype(logps.dtype), mask) for name, value in values.items()}


def ratio_extremes(
    logps: Float[Array, "*B"], old_logps: Float[Array, "*B"], mask: Bool[Array, "*B"] | None = None
) -> dict[str, Largest]:
    """The largest ratio ρ = exp(logps - old_logps) of a batch, at least 1, and the largest 1/ρ.

    Args:
      logps, old_logps: nats, ``[...]``.
      mask: which tokens count; all by default.
    Returns:
      ``policy/ratio_max`` and ``policy/inverse_ratio_max``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> ratio_extremes(jnp.log(jnp.array([0.5, 1.5])), jnp.zeros(2))["policy/inverse_ratio_max"]
    Largest(value=Array(2., dtype=float32))
    """
    logps, old_logps = check.real(logps=logps, old_logps=old_logps)
    log_ratio = logps - old_logps
    return {
        "policy/ratio_max": largest(jnp.exp(jnp.maximum(log_ratio, 0)), mask),
        "policy/inverse_ratio_max": largest(jnp.exp(jnp.maximum(-log_ratio, 0)), mask),
    }


def value_clip_fraction(
    values: Float[Array, "*B"],
    old_values: Float[Array, "*B"],
    returns: Float[Array, "*B"],
    mask: Bool[Array, "*B"] | None = None,
    *,
    clip: float = 0.2,
) -> SumCount:
    """On how many tokens ``value_clip`` takes its clipped term, the larger one, and so has no gradient.

    Args:
      values, old_values, returns: v, v_old and R, ``[...]``.
      mask: which tokens count; all by default.
      clip: as in ``value_clip``.
    Returns:
      (sum, count).
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> value_clip_fraction(jnp.array([1.0, 0.1]), jnp.zeros(2), jnp.ones(2))
    (Array(1., dtype=float32), Array(2., dtype=float32))
    """
    values, old_values, returns = check.real(values=values, old_values=old_values, returns=returns)
    clipped = jnp.clip(values, old_values - clip, old_values + clip)
    return sum_count(((clipped - returns) ** 2 > (values - returns) ** 2).astype(values.dtype), mask)


class Moments(NamedTuple):
    """Sums from which the explained variance of a batch follows; ``add`` adds two."""

    number: Float[Array, ""]
    returns: Float[Array, ""]
    returns_squared: Float[Array, ""]
    errors: Float[Array, ""]
    errors_squared: Float[Array, ""]


def value_moments(
    values: Float[Array, "*B"], returns: Float[Array, "*B"], mask: Bool[Array, "*B"] | None = None
) -> Moments:
    """Moments of the returns and of the errors R - V, to be added up and given to ``explained_variance``.

    Args:
      values, returns: V and R, ``[...]``.
      mask: which tokens count; all by default.
    Returns:
      their ``Moments``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> moments = value_moments(jnp.array([0.0, 1.0]), jnp.array([0.0, 2.0]))
    >>> explained_variance(add(moments, moments))
    Array(0.75, dtype=float32)
    """
    values, returns = check.real(values=values, returns=returns)
    errors = returns - values
    total, count = sum_count(returns, mask)
    return Moments(count, total, *(sum_count(x, mask)[0] for x in (returns**2, errors, errors**2)))


def explained_variance(moments: Moments) -> Float[Array, ""]:
    """1 - Var(R - V) / Var(R): 1 for a perfect value model, 0 for a constant one; NaN for constant returns.

    Args:
      moments: of all the tokens, from ``value_moments``.
    Returns:
      a scalar.

    >>> explained_variance(value_moments(jnp.array([0.0, 2.0]), jnp.array([0.0, 2.0])))
    Array(1., dtype=float32)
    """
    number = jnp.maximum(moments.number, 1)
    variance = moments.returns_squared / number - (moments.returns / number) ** 2
    residual = moments.errors_squared / number - (moments.errors / number) ** 2
    return 1 - residual / jnp.where(variance > 0, variance, jnp.nan)
