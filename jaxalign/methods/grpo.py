"""Policy gradients without a value model: one method, whose advantage, ratio, loss and reduction are its arguments.

====================  ==========================  ============  ============  ====================  ============
name                  advantage                   ratio of      loss          reduction             KL
====================  ==========================  ============  ============  ====================  ============
``grpo``              group_relative              tokens        clip          sequence_mean         k3, in loss
``dr_grpo``           group_relative, no std      tokens        clip          fixed_length_mean     none
``dapo``              group_relative              tokens        clip, higher  token_mean            none
``rloo``              leave_one_out               sequences     clip          sequence_mean         k1, in reward
``reinforce_pp``      reward to go, whitened      tokens        clip          token_mean            k1, in reward
``reinforce_pp_b``    centred, whitened           tokens        clip          token_mean            k2, in loss
``gspo``              group_relative              token means   clip, narrow  sequence_mean         none
``cispo``             group_relative              tokens        cispo         token_mean            none
====================  ==========================  ============  ============  ====================  ============
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign import advantages, losses
from jaxalign.logprobs import kl_estimate
from jaxalign.loop import Method, Metrics
from jaxalign.losses import metrics as measure_of
from jaxalign.losses import reductions
from jaxalign.losses.controllers import fixed_kl
from jaxalign.masking import Rows, sum_by_owner, take_by_owner
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
    sums = sum_by_owner(jnp.where(rows.mask, logps, 0), rows.owner, *rows.last.shape[-2:])
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
        beta, ref_logps = (0.0, x.old_logps) if reward_kl is None else (state.kl.beta, x.ref_logps)
        rewards = advantages.kl_shaped_rewards(
            scores, x.old_logps, ref_logps, x.mask, beta=beta, estimator=reward_kl or "k1"
        )
        taught = {"advantages": advantage(rewards, x.mask)}
        if loss_kl is not None:
            taught |= {"ref_logps": x.ref_logps, "beta": jnp.broadcast_to(state.kl.beta, x.mask.shape)}
        after, metrics = common.advance(state, x, moments, controller)
        return taught, after, metrics | common.moments_of("advantages", taught["advantages"], x.mask)

    def microbatch_loss(params: Any, rows: Rows) -> tuple[Array, Metrics]:
        x = common.token_extras(rows)
        found = model.token_statistics(params, model.predictors(params, rows), rows)
        logps, old_logps = ratio(found.logps, rows), ratio(x["old_logps"], rows)
        policy = loss(logps, old_logps, x["advantages"])
        metrics = {
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


_group = advantages.per_sequence(advantages.group_relative)
# Shao et al. 2024, arXiv:2402.03300, eq. 3.
grpo = functools.partial(
    policy_gradient,
    advantage=_group,
    loss=losses.ppo_clip,
    weights=reductions.sequence_mean_weights,
    loss_kl="k3",
)
# Yu et al. 2025, arXiv:2503.14476, eqs. 8 and 10; see also ``rollouts.informative`` and ``rollouts.overlong_penalty``.
dapo = functools.partial(
    policy_gradient,
    advantage=_group,
    loss=functools.partial(losses.ppo_clip, clip_low=0.2, clip_high=0.28),
    weights=reductions.token_mean_weights,
)
# Ahmadian et al. 2024, arXiv:2402.14740, sec. 3: the completion is one action; the clip is for steps after the first.
rloo = functools.partial(
    policy_gradient,
    advantage=advantages.per_sequence(advantages.leave_one_out),
    loss=losses.ppo_clip,
    weights=reductions.sequence_mean_weights,
    ratio=of_sequences,
    reward_kl="k1",
)
# Hu et al. 2025, arXiv:2501.03262.
reinforce_pp = functools.partial(
    policy_gradient,
    advantage=advantages.reinforce_plus_plus,
    loss=losses.ppo_clip,
    weights=reductions.token_mean_weights,
    reward_kl="k1",
)
reinforce_pp_b = functools.partial(
    policy_gradient,
    advantage=advantages.reinforce_plus_plus_baseline,
    loss=losses.ppo_clip,
    weights=reductions.token_mean_weights,
    loss_kl="k2",
)
# Zheng et al. 2025, arXiv:2507.18071, eqs. 5 and 7.
gspo = functools.partial(
    policy_gradient,
    advantage=_group,
    loss=functools.partial(losses.ppo_clip, clip_low=3e-4, clip_high=4e-4),
    weights=reductions.sequence_mean_weights,
    ratio=of_token_means,
)
# MiniMax-M1, 2025, arXiv:2506.13585, eqs. 4 and 5.
cispo = functools.partial(
    policy_gradient,
    advantage=_group,
    loss=functools.partial(losses.cispo, max_ratio=5.0),
    weights=reductions.token_mean_weights,
)


def dr_grpo(model: Model, *, length: int, **options: Any) -> Online:
    """Dr. GRPO (Liu et al. 2025, arXiv:2503.20783): no standard deviation, and a constant length to divide by."""
    options = {
        "advantage": advantages.per_sequence(functools.partial(advantages.group_relative, scale=False)),
        "loss": losses.ppo_clip,
        "weights": functools.partial(reductions.fixed_length_mean_weights, length=length),
        **options,
    }
    return policy_gradient(model, **options)
