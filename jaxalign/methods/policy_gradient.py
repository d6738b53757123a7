"""A policy gradient without a value model, of an advantage, a ratio, a loss and a reduction; ``grpo`` names some."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign import advantages
from jaxalign.logprobs import kl_estimate
from jaxalign.loop import Method, Metrics
from jaxalign.losses import metrics as measure_of
from jaxalign.losses import reductions
from jaxalign.losses.controllers import fixed_kl
from jaxalign.masking import Rows, completion_sums, take_by_owner
from jaxalign.methods import experience as common
from jaxalign.methods.experience import Experience, Measured, Online, OnlineState
from jaxalign.models.model import Model

Slots = Float[Array, "R S"]


def of_tokens(logps: Slots, rows: Rows) -> Slots:
    """The ratio of each token by itself."""
    del rows
    return logps


def of_sequences(logps: Slots, rows: Rows) -> Slots:
    """log π of the whole completion, on each of its tokens."""
    sums = completion_sums(jnp.where(rows.mask, logps, 0), rows)
    return jnp.where(rows.mask, take_by_owner(sums, rows.owner), 0)


def of_token_means(logps: Slots, rows: Rows) -> Slots:
    """log π of the completion over its number of tokens, on each of them (GSPO: Zheng et al. 2025, eq. 7)."""
    length = of_sequences(jnp.ones_like(logps), rows)
    return of_sequences(logps, rows) / jnp.maximum(length, 1)


def policy_gradient(
    model: Model,
    *,
    advantage: Callable[[Array, Array], Array],
    loss: Callable[[Array, Array, Array], Array],
    weights: Callable[[Array], Array],
    ratio: Callable[[Slots, Rows], Slots] = of_tokens,
    reward_kl: str | None = None,
    loss_kl: str | None = None,
    shape: Callable[..., Any] = common.shape_scores,
    controller: common.Controller = fixed_kl,
) -> Online:
    """A policy-gradient method of an advantage, a ratio, a loss and a reduction; ``params`` is the policy's tree.

    With r_t = [t is the last] n(score) - β kl_t (``reward_kl``) and A = advantage(r), steps are on::

        Σ_t w_t [loss(u(log π)_t, u(log π_old)_t, A_t) + β kl_t(π ‖ π_ref) (``loss_kl``)]

    Args:
      model: the policy's; the reference is ``frozen["reference"]`` or the base of ``model.lora``, if there is a KL.
      advantage: (token rewards [B, K, C], mask) -> advantages of the same shape; see ``advantages.per_sequence``.
      loss: of (logps, old_logps, advantages), elementwise, such as ``losses.ppo_clip``.
      weights: w, of a minibatch's mask [N, C]: a ``…_weights`` of ``losses.reductions``.
      ratio: u: ``of_tokens``, or what makes one ratio for all of a completion: ``of_sequences``, ``of_token_means``.
      reward_kl: estimator of the KL in the reward; None for none.
      loss_kl: estimator of the KL in the loss; None for none.
      shape: n: (moments, experience) -> (rewards of completions, moments).
      controller: of β, which both KLs are priced with.
    Returns:
      the method, for ``rollouts.iterate``.
    """

    def measure(params: Any, frozen: Mapping[str, Any], rows: Rows) -> Measured:
        return {"ref_logps": common.reference_logps(model, params, frozen, rows)}

    def experience(state: OnlineState, x: Experience) -> tuple[Measured, OnlineState, Measured]:
        scores, moments = shape(state.scores, x)
        beta: float | Array = 0.0
        ref_logps = x.old_logps
        if reward_kl is not None:
            assert x.ref_logps is not None
            beta, ref_logps = state.kl.beta, x.ref_logps
        rewards = advantages.kl_shaped_rewards(
            scores, x.old_logps, ref_logps, x.mask, beta=beta, estimator=reward_kl or "k1"
        )
        taught = {"advantages": advantage(rewards, x.mask)}
        if loss_kl is not None:
            assert x.ref_logps is not None
            taught |= {"ref_logps": x.ref_logps, "beta": jnp.broadcast_to(state.kl.beta, x.mask.shape)}
        after, metrics = common.advance(state, x, moments, controller)
        return taught, after, metrics | common.moments_of("advantages", taught["advantages"], x.mask)

    def microbatch_loss(params: Any, rows: Rows) -> tuple[Array, Metrics]:
        x = common.token_extras(rows)
        found = model.token_statistics(params, model.predictors(params, rows), rows)
        logps, old_logps = ratio(found.logps, rows), ratio(x["old_logps"], rows)
        policy = loss(logps, old_logps, x["advantages"])
        metrics: Metrics = {
            **measure_of.policy_metrics(logps, old_logps, x["advantages"], rows.mask),
            **measure_of.ratio_extremes(logps, old_logps, rows.mask),
            "policy/entropy_avg": measure_of.sum_count(found.entropy, rows.mask),
            "loss/policy_avg": measure_of.sum_count(policy, rows.mask),
        }
        total = reductions.weighted_sum(policy, x["weight"])
        if loss_kl is not None:
            kl = kl_estimate(found.logps, x["ref_logps"], estimator=loss_kl)
            total += reductions.weighted_sum(x["beta"] * kl, x["weight"])
            metrics["loss/kl_avg"] = measure_of.sum_count(kl, rows.mask)
        return total, metrics

    needs_reference = reward_kl is not None or loss_kl is not None
    return Online(measure if needs_reference else None, experience, weights, Method(common.as_it_is, microbatch_loss))
