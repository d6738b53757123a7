"""Online DPO: pairs of the policy's own completions, chosen and rejected by a reward model or a judge.

An iteration samples K completions of each prompt, scores them, measures the reference once, takes the best and the
worst completion, and steps on ``methods.dpo``. A judge is a scorer as well (``judges.judge_scorer``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxalign import losses
from jaxalign.losses.controllers import fixed_kl
from jaxalign.methods.dpo import dpo
from jaxalign.methods.experience import (
    Experience,
    OnlineMethod,
    OnlineState,
    Outcome,
    StepInputs,
    advance,
    measure_reference,
    shape_scores,
)
from jaxalign.models.model import Model


def online_dpo(
    model: Model, *, beta: float, loss: Callable[..., Array] = losses.dpo, shape: Callable[..., Any] = shape_scores
) -> OnlineMethod:
    """Returns online DPO (Guo et al. 2024, arXiv:2402.04792): DPO on pairs that the current policy sampled.

    A pair is the completion with the maximum and the one with the minimum reward, the first of equal ones. Prompts
    whose completions all tie are dropped; ``rewards/tied`` is their share.

    Args:
        model: the policy's model. The reference is ``frozen["reference"]``, one in the method state, or the base of
            adapters.
        beta: as in ``dpo``.
        loss: as in ``dpo``.
        shape: (moments, experience) -> (rewards of completions, moments), ``shape_scores`` with its options.

    Returns:
        The method, for ``rollouts.iterate``.
    """

    def experience(state: OnlineState, x: Experience) -> Outcome:
        rewards, moments = shape(state.scores, x)
        after, metrics = advance(state, x, moments, fixed_kl)
        # The step takes the reference's log-probs of whole completions.
        inputs = StepInputs(ref_logps=jnp.sum(jnp.where(x.mask, x.ref_logps, 0), axis=-1))
        pairs = jnp.stack([jnp.argmax(rewards, axis=1), jnp.argmin(rewards, axis=1)], axis=1)
        return Outcome(inputs, after, metrics, pairs)

    measure = functools.partial(measure_reference, model)
    return OnlineMethod(measure, experience, None, dpo(model, beta=beta, loss=loss))
