"""Proximal policy optimisation of a language model, with a value model and a KL penalty.

``params`` is ``{"policy": a model's tree, "value": a value model's}``. The value model is either a head on the policy's
own states, ``{"score": {"kernel": [D, 1]}}``, or a separate model with one score (``value_model``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign import advantages, losses
from jaxalign.loop import Method, Metrics
from jaxalign.losses import metrics as loss_metrics
from jaxalign.losses import reductions
from jaxalign.losses.controllers import fixed_kl
from jaxalign.masking import Rows
from jaxalign.methods.experience import (
    Controller,
    Experience,
    Measurements,
    OnlineMethod,
    OnlineState,
    Outcome,
    StepInputs,
    advance,
    moment_metrics,
    prepare_nothing,
    reference_logps,
    shape_scores,
    step_inputs,
    step_metrics,
    token_kl,
)
from jaxalign.models.model import Model
from jaxalign.models.params import Params
from jaxalign.models.sharding import replicated


def value_head(model: Model) -> Params:
    """Returns a head on the policy's states that predicts 0 everywhere: ``params["value"]`` before training."""
    kernel = jnp.zeros((model.config.hidden_size, 1), jnp.float32)
    return {"score": {"kernel": jax.device_put(kernel, replicated(model.mesh))}}


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
) -> OnlineMethod:
    """Returns PPO (Schulman et al. 2017, arXiv:1707.06347) as in Ouyang et al. 2022, arXiv:2203.02155, sec. 3.5.

    Once per iteration, over the whole batch, with π_old the policy that sampled::

        r_t = -β kl_t(π_old ‖ π_ref) + [t is the last] n(score)      ``advantages.kl_shaped_rewards``
        A, R = GAE(r, V_old; γ, λ);  A ← (A - mean A) / std A          over all tokens of the batch
        β ← controller(β, mean Σ_t k1_t)                              for the next iteration

    Then, over epochs and minibatches, steps minimise the mean over the minibatch's tokens of::

        -min(ρ A, clip(ρ, 1-lo, 1+hi) A) + c ½ max((V - R)², (clip(V, V_old ± v) - R)²)

    Args:
        model: model of the policy and of the reference, which is ``frozen["reference"]`` or the base of adapters.
        value_model: a separate model with one score; by default the head is on the policy's states.
        shape: n: (moments, experience) -> (rewards of completions, moments), ``shape_scores`` with its options.
        estimator: estimator of kl_t, as in ``logprobs.kl_estimate``.
        controller: controller of β: ``losses.fixed_kl``, or ``adaptive_kl`` with its target.
        gamma: γ, the discount per token.
        lam: λ of GAE.
        whiten: (A, mask) -> A.
        clip_low: lo, how far the ratio may fall below 1.
        clip_high: hi, how far the ratio may rise above 1.
        value_clip: v, how far a value may move.
        value_coefficient: c, weight of the value loss.

    Returns:
        The method, for ``rollouts.iterate``.
    """

    def values_of(params: Any, states: Float[Array, "R S D"], rows: Rows) -> Float[Array, "R S"]:
        if value_model is None:
            return model.values(params["value"], states)
        return value_model.values(params["value"], value_model.predictors(params["value"], rows))

    def measure(params: Any, frozen: Mapping[str, Any], rows: Rows) -> Measurements:
        # With a separate value model nothing uses the policy's states, so XLA removes their computation.
        states = model.predictors(params["policy"], rows)
        ref_logps = reference_logps(model, params["policy"], frozen, rows)
        return Measurements(ref_logps, values_of(params, states, rows))

    def experience(state: OnlineState, x: Experience) -> Outcome:
        return learn_from(state, x, shape, estimator, controller, gamma=gamma, lam=lam, whiten=whiten)

    def loss(params: Any, rows: Rows) -> tuple[Array, Metrics]:
        x = step_inputs(rows)
        states = model.predictors(params["policy"], rows)
        new = model.token_statistics(params["policy"], states, rows)
        values = jnp.where(rows.mask, values_of(params, states, rows), 0)
        clips = {"clip_low": clip_low, "clip_high": clip_high}
        policy = losses.ppo_clip(new.logps, x.old_logps, x.advantages, **clips)
        value = losses.value_clip(values, x.old_values, x.returns, clip=value_clip)
        total = reductions.weighted_sum(policy + value_coefficient * value, x.weight)
        clipped = loss_metrics.value_clip_fraction(values, x.old_values, x.returns, rows.mask, clip=value_clip)
        return total, {
            **step_metrics(new.logps, x.old_logps, x.advantages, new.entropy, policy, rows.mask, **clips),
            "loss/value_avg": loss_metrics.sum_count(value, rows.mask),
            "val/clipfrac_avg": clipped,
        }

    return OnlineMethod(measure, experience, reductions.token_mean_weights, Method(prepare_nothing, loss))


def learn_from(
    state: OnlineState,
    x: Experience,
    shape: Callable[..., Any],
    estimator: str,
    controller: Controller,
    *,
    gamma: float,
    lam: float,
    whiten: Callable[[Array, Array], Array],
) -> Outcome:
    """Computes token rewards, advantages and returns of a batch; arguments as in ``ppo``."""
    scores, moments = shape(state.scores, x)
    rewards = advantages.kl_shaped_rewards(
        scores, x.old_logps, x.ref_logps, x.mask, beta=state.kl.beta, estimator=estimator
    )
    advantage, returns = advantages.gae(rewards, x.values, x.mask, gamma=gamma, lam=lam)
    after, metrics = advance(state, x, moments, controller)
    metrics["val/explained_variance"] = loss_metrics.explained_variance(
        loss_metrics.value_moments(x.values, returns, x.mask)
    )
    metrics |= moment_metrics("advantages", advantage, x.mask) | moment_metrics("returns", returns, x.mask)
    completions = jnp.maximum(jnp.sum(jnp.any(x.mask, axis=-1)), 1)
    metrics["objective/non_score_reward"] = -state.kl.beta * jnp.sum(token_kl(x, estimator)) / completions
    metrics["objective/rlhf_reward"] = jnp.sum(rewards) / completions
    inputs = StepInputs(x.old_logps, whiten(advantage, x.mask), x.ref_logps, x.values, returns)
    return Outcome(inputs, after, metrics)
