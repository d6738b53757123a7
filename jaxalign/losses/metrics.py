"""Training metrics as pure functions of arrays, each a (sum, count) or moments that add.

Add them over microbatches, devices and steps, and divide once, at the end (``mean``, ``explained_variance``). A mean of
means would be another number. No metric carries a gradient.
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
    """Maximum of non-negative values: a metric of which ``add`` takes the larger one."""

    value: Float[Array, ""]


def sum_count(values: Float[Array, "*B"], mask: Bool[Array, "*B"] | None = None) -> SumCount:
    """Returns the sum of the values that count, and their number.

    Args:
        values: any shape.
        mask: True on values that count; all by default. The others have no influence, even if they are NaN.

    Returns:
        ``(sum, count)``, two scalars.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> sum_count(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False]))
    (Array(4., dtype=float32), Array(2., dtype=float32))
    """
    values = jax.lax.stop_gradient(check.to_number("values", values))
    mask = jnp.ones(values.shape, bool) if mask is None else check.to_mask("mask", mask, values.shape, "values")
    return jnp.sum(jnp.where(mask, values, 0)), jnp.sum(mask).astype(values.dtype)


def largest(values: Float[Array, "*B"], mask: Bool[Array, "*B"] | None = None) -> Largest:
    """Returns the largest of the values that count, at least 0.

    Args:
        values: any shape.
        mask: True on values that count; all by default.

    Returns:
        a ``Largest``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> add(largest(jnp.array([1.0, 3.0]), jnp.array([True, False])), largest(jnp.array([2.0])))
    Largest(value=Array(2., dtype=float32))
    """
    values = jax.lax.stop_gradient(check.to_number("values", values))
    mask = jnp.ones(values.shape, bool) if mask is None else check.to_mask("mask", mask, values.shape, "values")
    return Largest(jnp.max(jnp.where(mask, values, 0), initial=0))


def add(metrics: T, more: T) -> T:
    """Adds the metrics of two batches: sums, counts and moments add, and of two ``Largest`` the larger one stays.

    >>> add({"kl": (1.0, 2.0)}, {"kl": (3.0, 2.0)})
    {'kl': (4.0, 4.0)}
    """

    def join(one: Any, other: Any) -> Any:
        return Largest(jnp.maximum(one.value, other.value)) if isinstance(one, Largest) else one + other

    return jax.tree.map(join, metrics, more, is_leaf=lambda x: isinstance(x, Largest))


def mean(metrics: Mapping[str, SumCount | Largest]) -> dict[str, Float[Array, ""]]:
    """Divides each metric's sum by its count; a ``Largest`` gives its value.

    The result is NaN where nothing was counted.

    >>> mean({"kl": (jnp.array(4.0), jnp.array(8.0))})
    {'kl': Array(0.5, dtype=float32, weak_type=True)}
    """

    def divide(total: Any, count: Any) -> Array:
        # The inner ``where`` avoids a division by 0, of which NumPy warns.
        return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), jnp.nan)

    return {name: m.value if isinstance(m, Largest) else divide(*m) for name, m in metrics.items()}


def preference_metrics(
    policy_chosen_logps: Logps,
    policy_rejected_logps: Logps,
    reference_chosen_logps: Logps,
    reference_rejected_logps: Logps,
    mask: Bool[Array, "*B"] | None = None,
    *,
    beta: float,
) -> Metrics:
    """Measures implicit rewards β log(π/π_ref) of pairs, their margins, accuracies and log-probabilities.

    Args:
        policy_chosen_logps: log-probabilities of the chosen completions under the policy, nats, ``[...]``.
        policy_rejected_logps: the same of the rejected completions.
        reference_chosen_logps: log-probabilities of the chosen completions under the reference, nats, ``[...]``.
        reference_rejected_logps: the same of the rejected completions.
        mask: True on pairs that count; all by default.
        beta: β, scale of the rewards.

    Returns:
        ``rewards/chosen``, ``rewards/rejected``, ``rewards/margins``, ``rewards/accuracies`` (a tie counts half),
        ``logps/chosen`` and ``logps/rejected``, each as (sum, count).

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> pc, pr, rc, rr = jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0])
    >>> preference_metrics(pc, pr, rc, rr, beta=0.5)["rewards/margins"]
    (Array(1., dtype=float32), Array(1., dtype=float32))
    """
    h_c, h_r = log_ratios(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    logps = {"logps/chosen": policy_chosen_logps, "logps/rejected": policy_rejected_logps}
    metrics = _pair_metrics(beta * h_c, beta * h_r, beta * (h_c - h_r), mask)
    return metrics | {name: sum_count(value, mask) for name, value in logps.items()}


def reward_metrics(chosen_rewards: Logps, rejected_rewards: Logps, mask: Bool[Array, "*B"] | None = None) -> Metrics:
    """Measures a reward model's scores of pairs, their margins and accuracies.

    Args:
        chosen_rewards: r_c, scores of the chosen completions, ``[...]``.
        rejected_rewards: r_r, scores of the rejected completions, ``[...]``.
        mask: True on pairs that count; all by default.

    Returns:
        ``rewards/chosen``, ``rewards/rejected``, ``rewards/margins`` and ``rewards/accuracies`` (a tie counts half),
        each as (sum, count).

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> reward_metrics(jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0]))["rewards/accuracies"]
    (Array(1., dtype=float32), Array(2., dtype=float32))
    """
    r_c, r_r = check.to_floats(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    return _pair_metrics(r_c, r_r, r_c - r_r, mask)


def _pair_metrics(chosen: Logps, rejected: Logps, margins: Logps, mask: Bool[Array, "*B"] | None) -> Metrics:
    values = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": margins,
        "rewards/accuracies": (jnp.sign(margins) + 1) / 2,
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
    """Measures how far a policy has moved from the one that sampled, and how often ``ppo_clip`` clips.

    Args:
        logps: log-probabilities of the tokens under the policy, nats, ``[...]``.
        old_logps: the same under the policy that sampled; held constant.
        advantages: A, ``[...]``.
        mask: True on tokens that count; all by default.
        clip_low: lo, distance of the lower bound from 1.
        clip_high: hi, distance of the upper bound from 1.

    Returns:
        ``policy/approxkl_avg`` (k3 of KL(π_old ‖ π)), ``policy/clipfrac_avg`` and its two sides ``policy/clipfrac_low``
        (ρ < 1-lo, A < 0) and ``policy/clipfrac_high`` (ρ > 1+hi, A > 0), and ``policy/ratio``, each as (sum, count).

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> old, advantages = jnp.zeros(2), jnp.array([1.0, -1.0])
    >>> policy_metrics(jnp.log(jnp.array([1.5, 1.5])), old, advantages)["policy/clipfrac_avg"]
    (Array(1., dtype=float32), Array(2., dtype=float32))
    """
    logps, old_logps = check.to_floats(logps=logps, old_logps=old_logps)
    advantages = check.to_constant("advantages", advantages, logps, "logps")
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
    """Measures the largest ratio ρ = exp(logps - old_logps) of a batch and the largest 1/ρ, each at least 1.

    Args:
        logps: log-probabilities of the tokens under the policy, nats, ``[...]``.
        old_logps: the same under the policy that sampled; held constant.
        mask: True on tokens that count; all by default.

    Returns:
        ``policy/ratio_max`` and ``policy/inverse_ratio_max``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> ratio_extremes(jnp.log(jnp.array([0.5, 1.5])), jnp.zeros(2))["policy/inverse_ratio_max"]
    Largest(value=Array(2., dtype=float32))
    """
    logps, old_logps = check.to_floats(logps=logps, old_logps=old_logps)
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
    """Counts the tokens on which ``value_clip`` takes its clipped term and so has no gradient.

    Args:
        values: v, predicted values, ``[...]``.
        old_values: v_old, the values when the tokens were sampled, ``[...]``.
        returns: R, ``[...]``.
        mask: True on tokens that count; all by default.
        clip: as in ``value_clip``.

    Returns:
        ``(sum, count)``, two scalars.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> value_clip_fraction(jnp.array([1.0, 0.1]), jnp.zeros(2), jnp.ones(2))
    (Array(1., dtype=float32), Array(2., dtype=float32))
    """
    values, old_values, returns = check.to_floats(values=values, old_values=old_values, returns=returns)
    clipped = jnp.clip(values, old_values - clip, old_values + clip)
    return sum_count(((clipped - returns) ** 2 > (values - returns) ** 2).astype(values.dtype), mask)


class Moments(NamedTuple):
    """Sums that determine the explained variance of a batch; ``add`` adds two."""

    number: Float[Array, ""]
    returns: Float[Array, ""]
    returns_squared: Float[Array, ""]
    errors: Float[Array, ""]
    errors_squared: Float[Array, ""]


def value_moments(
    values: Float[Array, "*B"], returns: Float[Array, "*B"], mask: Bool[Array, "*B"] | None = None
) -> Moments:
    """Sums the moments of the returns and of the errors R - V, the input of ``explained_variance``.

    Args:
        values: V, predicted values, ``[...]``.
        returns: R, ``[...]``.
        mask: True on tokens that count; all by default.

    Returns:
        a ``Moments``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> moments = value_moments(jnp.array([0.0, 1.0]), jnp.array([0.0, 2.0]))
    >>> explained_variance(add(moments, moments))
    Array(0.75, dtype=float32)
    """
    values, returns = check.to_floats(values=values, returns=returns)
    errors = returns - values
    total, count = sum_count(returns, mask)
    return Moments(count, total, *(sum_count(x, mask)[0] for x in (returns**2, errors, errors**2)))


def explained_variance(moments: Moments) -> Float[Array, ""]:
    """Computes the share of the returns' variance that the value model explains.

        1 - Var(R - V) / Var(R)

    It is 1 for a perfect value model, 0 for a constant one, and NaN for constant returns.

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
