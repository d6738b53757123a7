"""Policy gradients without a value model, built from an advantage, a ratio, a loss and a reduction.

``grpo`` contains the published combinations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign import advantages
from jaxalign.logprobs import kl_estimate
from jaxalign.loop import Method, Metrics
from jaxalign.losses import reductions
from jaxalign.losses.controllers import fixed_kl
from jaxalign.losses.metrics import sum_count
from jaxalign.masking import Rows, completion_sums, take_by_owner
from jaxalign.methods.experience import (
    Controller,
    Experience,
    OnlineMethod,
    OnlineState,
    Outcome,
    StepInputs,
    advance,
    measure_reference,
    moment_metrics,
    prepare_nothing,
    shape_scores,
    step_inputs,
    step_metrics,
)
from jaxalign.models.model import Model

Slots = Float[Array, "R S"]


def of_tokens(logps: Slots, rows: Rows) -> Slots:
    """Returns log π of each token: one ratio per token."""
    del rows
    return logps


def of_sequences(logps: Slots, rows: Rows) -> Slots:
    """Returns log π of the whole completion, on each of its tokens."""
    sums = completion_sums(jnp.where(rows.mask, logps, 0), rows)
    return jnp.where(rows.mask, take_by_owner(sums, rows.owner), 0)


def of_token_means(logps: Slots, rows: Rows) -> Slots:
    """Returns log π of the completion over its number of tokens, on each of them (GSPO: Zheng et al. 2025, eq. 7)."""
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
    shape: Callable[..., Any] = shape_scores,
    controller: Controller = fixed_kl,
) -> OnlineMethod:
    """Returns a policy-gradient method; ``params`` is the policy's tree.

    With r_t = [t is the last] n(score) - β kl_t (``reward_kl``) and A = advantage(r), steps minimise::

        Σ_t w_t [loss(u(log π)_t, u(log π_old)_t, A_t) + β kl_t(π ‖ π_ref) (``loss_kl``)]

    Args:
        model: the policy's model. If there is a KL, the reference is ``frozen["reference"]`` or the base of adapters.
        advantage: (token rewards [B, K, C], mask) -> advantages of the same shape; see ``advantages.per_sequence``.
        loss: (logps, old_logps, advantages) -> loss per token, such as ``losses.ppo_clip``.
        weights: w, from a minibatch's mask [N, C]: a ``…_weights`` of ``losses.reductions``.
        ratio: u: ``of_tokens``, or one ratio per completion: ``of_sequences``, ``of_token_means``.
        reward_kl: estimator of the KL in the reward; None for no KL.
        loss_kl: estimator of the KL in the loss; None for no KL.
        shape: n: (moments, experience) -> (rewards of completions, moments).
        controller: controller of β, the price of both KLs.

    Returns:
        The method, for ``rollouts.iterate``.
    """

    def experience(state: OnlineState, x: Experience) -> Outcome:
        scores, moments = shape(state.scores, x)
        # Without a KL in the reward, the policy's own log-probs as the reference make every kl_t zero.
        beta, ref_logps = (0.0, x.old_logps) if reward_kl is None else (state.kl.beta, x.ref_logps)
        rewards = advantages.kl_shaped_rewards(
            scores, x.old_logps, ref_logps, x.mask, beta=beta, estimator=reward_kl or "k1"
        )
        inputs = StepInputs(x.old_logps, advantage(rewards, x.mask))
        if loss_kl is not None:
            inputs = inputs._replace(ref_logps=x.ref_logps, beta=jnp.broadcast_to(state.kl.beta, x.mask.shape))
        after, metrics = advance(state, x, moments, controller)
        return Outcome(inputs, after, metrics | moment_metrics("advantages", inputs.advantages, x.mask))

    def microbatch_loss(params: Any, rows: Rows) -> tuple[Array, Metrics]:
        x = step_inputs(rows)
        new = model.token_statistics(params, model.predictors(params, rows), rows)
        logps, old_logps = ratio(new.logps, rows), ratio(x.old_logps, rows)
        policy = loss(logps, old_logps, x.advantages)
        metrics = step_metrics(logps, old_logps, x.advantages, new.entropy, policy, rows.mask)
        total = reductions.weighted_sum(policy, x.weight)
        if loss_kl is not None:
            kl = kl_estimate(new.logps, x.ref_logps, estimator=loss_kl)
            total += reductions.weighted_sum(x.beta * kl, x.weight)
            metrics["loss/kl_avg"] = sum_count(kl, rows.mask)
        return total, metrics

    needs_reference = reward_kl is not None or loss_kl is not None
    measure = functools.partial(measure_reference, model) if needs_reference else None
    return OnlineMethod(measure, experience, weights, Method(prepare_nothing, microbatch_loss))
