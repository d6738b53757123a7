"""Proximal policy optimisation of a language model, with a value model and a KL penalty: wiring.

``params`` is ``{"policy": a model's tree, "value": a value model's}``. The value model is a head on the policy's own
states, ``{"score": {"kernel": [D, 1]}}``, or a model of its own with one score (``value_model``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign import advantages, losses
from jaxalign.loop import Method, Metrics
from jaxalign.losses import metrics as measure_of
from jaxalign.losses import reductions
from jaxalign.losses.controllers import fixed_kl
from jaxalign.masking import Rows
from jaxalign.methods.experience import (
    Controller,
    Experience,
    Measured,
    Online,
    OnlineState,
    advance,
    as_it_is,
    moments_of,
    reference_logps,
    shape_scores,
    token_extras,
    token_kl,
)
from jaxalign.models.model import Model
from jaxalign.models.params import Params

ADDED = ("ref_logps", "old_values", "advantages", "returns")


def value_head(model: Model) -> Params:
    """A head on the policy's states that expects 0 everywhere: ``params["value"]`` before training."""
    kernel = jnp.zeros((model.config.hidden_size, 1), jnp.float32)
    replicated = jax.sharding.NamedSharding(model.mesh, jax.sharding.PartitionSpec())
    return {"score": {"kernel": jax.device_put(kernel, replicated)}}


def ppo(
    model: Model,
    *,
    value_model: Model | None = None,
    shape: Callable[..., Any] = shape_scores,
    estimator: str = "k1",
    controller: Controller = fixed_kl,
    gamma: float = 1.0,
    lam: float = 0.95,
    whiten: Callable[[Array, Array], Array] = advantages.whiten,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    value_clip: float = 0.2,
    value_coefficient: float = 0.1,
) -> Online:
    """PPO (Schulman et al. 2017, arXiv:1707.06347) as in InstructGPT (Ouyang et al. 2022, arXiv:2203.02155, sec. 3.5).

    Once an iteration, over the whole batch, with π_old the policy that sampled::

        r_t = -β kl_t(π_old ‖ π_ref) + [t is the last] n(score)      ``advantages.kl_shaped_rewards``
        A, R = GAE(r, V_old; γ, λ);  A ← (A - mean A) / std A          over all tokens of the batch
        β ← controller(β, mean Σ_t k1_t)                              for the next iteration

    and then, by epochs and minibatches, steps on the mean over the minibatch's tokens of::

        -min(ρ A, clip(ρ, 1-lo, 1+hi) A) + c ½ max((V - R)², (clip(V, V_old ± v) - R)²)

    Args:
      model: the policy's, and the reference's, which is ``frozen["reference"]`` or the base of ``model.lora``.
      value_model: a model with one score that has a trunk of its own; by default the head is on the policy's states.
      shape: (moments, experience) -> (rewards of completions, moments), ``shape_scores`` with its options.
      estimator: of kl_t, as in ``logprobs.kl_estimate``.
      controller: of β: ``losses.fixed_kl``, or ``adaptive_kl`` with its target.
      gamma, lam: γ and λ.
      whiten: (A, mask) -> A.
      clip_low, clip_high: lo and hi.
      value_clip: v.
      value_coefficient: c.
    Returns:
      the method, for ``rollouts.iterate``.
    """

    def read(params: Any, states: Float[Array, "R S D"], rows: Rows) -> Float[Array, "R S"]:
        """Values, on the policy's states or the value model's own."""
        if value_model is None:
            return model.values(params["value"], states)
        return value_model.values(params["value"], value_model.predictors(params["value"], rows))

    def measure(params: Any, frozen: Mapping[str, Any], rows: Rows) -> Measured:
        states = model.predictors(params["policy"], rows)  # not computed where the value model has its own
        return {
            "ref_logps": reference_logps(model, params["policy"], frozen, rows),
            "values": read(params, states, rows),
        }

    def experience(state: OnlineState, x: Experience) -> tuple[Measured, OnlineState, Measured]:
        assert x.values is not None
        assert x.ref_logps is not None
        scores, moments = shape(state.scores, x)
        rewards = advantages.kl_shaped_rewards(
            scores, x.old_logps, x.ref_logps, x.mask, beta=state.kl.beta, estimator=estimator
        )
        advantage, returns = advantages.gae(rewards, x.values, x.mask, gamma=gamma, lam=lam)
        after, metrics = advance(state, x, moments, controller)
        metrics["val/explained_variance"] = measure_of.explained_variance(
            measure_of.value_moments(x.values, returns, x.mask)
        )
        metrics |= moments_of("advantages", advantage, x.mask) | moments_of("returns", returns, x.mask)
        there = jnp.maximum(jnp.sum(jnp.any(x.mask, axis=-1)), 1)
        metrics["objective/non_score_reward"] = -state.kl.beta * jnp.sum(token_kl(x, estimator)) / there
        metrics["objective/rlhf_reward"] = jnp.sum(rewards) / there
        added = (x.ref_logps, x.values, whiten(advantage, x.mask), returns)
        return dict(zip(ADDED, added, strict=True)), after, metrics

    def loss(params: Any, rows: Rows) -> tuple[Array, Metrics]:
        x = token_extras(rows)
        states = model.predictors(params["policy"], rows)
        found = model.token_statistics(params["policy"], states, rows)
        values = jnp.where(rows.mask, read(params, states, rows), 0)
        clips = {"clip_low": clip_low, "clip_high": clip_high}
        policy = losses.ppo_clip(found.logps, x["old_logps"], x["advantages"], **clips)
        value = losses.value_clip(values, x["old_values"], x["returns"], clip=value_clip)
        total = reductions.weighted_sum(policy + value_coefficient * value, x["weight"])
        clipped = measure_of.value_clip_fraction(values, x["old_values"], x["returns"], rows.mask, clip=value_clip)
        return total, {
            **measure_of.policy_metrics(found.logps, x["old_logps"], x["advantages"], rows.mask, **clips),
            **measure_of.ratio_extremes(found.logps, x["old_logps"], rows.mask),
            "policy/entropy_avg": measure_of.sum_count(found.entropy, rows.mask),
            "loss/policy_avg": measure_of.sum_count(policy, rows.mask),
            "loss/value_avg": measure_of.sum_count(value, rows.mask),
            "val/clipfrac_avg": clipped,
        }

    return Online(measure, experience, reductions.token_mean_weights, Method(as_it_is, loss))
