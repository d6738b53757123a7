"""KTO and its relatives: trees of one completion (K = 1) whose extra ``label`` says whether it was liked."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign import losses
from jaxalign.loop import Batch, Method, Metrics, map_microbatches
from jaxalign.losses.metrics import sum_count
from jaxalign.masking import Rows
from jaxalign.methods.dpo import completion_logps, reference_of
from jaxalign.models.model import Model

Baseline = Callable[[Any, Any, Any, Batch], tuple[Array, Any]]  # as prepare; gives a scalar and the new state


def kto(model: Model, *, beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> Method:
    """KTO (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7).

    The mean over the batch of w_D (1 - σ(β(h - ẑ))) where liked, else w_U (1 - σ(β(ẑ - h))), h = log π - log π_ref.
    The reference point ẑ = max(0, mean of h(y' | x)) is of completions y' of other prompts (``data.mismatched``, as
    ``batch.mismatched``), over the whole batch, without gradient.

    The reference is ``frozen``, or the base of the policy's adapters; ``ref_logps`` [R, E, 1] cached in the trees'
    extras spare it all but the mismatched completions.

    Args:
      model: policy and reference architecture.
      beta: how strongly the policy is held to the reference.
      desirable_weight, undesirable_weight: w_D and w_U (λ_D and λ_U); see ``balanced_weights``.
    Returns:
      the method, for ``loop.make_step``. Rewards are β h; ``kl`` is ẑ, in nats, of each batch (in evaluation too).
    Raises:
      ValueError: at the first step, for a batch without mismatched completions, or without a reference.
    """

    def baseline(params: Any, frozen: Any, state: Any, batch: Batch) -> tuple[Array, Any]:
        if batch.mismatched is None:
            raise ValueError("the batch has no mismatched completions: draw batches with data.mismatched.Mismatched.")
        policy = _logps(model, params, batch.mismatched).reshape(-1)
        reference = _logps(*reference_of(model, params, frozen), batch.mismatched).reshape(-1)
        return losses.kto_kl(policy, reference, mask=batch.mismatched.rows.example_mask.reshape(-1)), state

    weights: Any = {"desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
    return _method(model, functools.partial(losses.kto, beta=beta, **weights), baseline, "kl", beta)


def apo_zero_unpaired(
    model: Model, *, beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Method:
    """APO-zero on single completions (D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7): KTO with ẑ = 0.

    The arguments are those of ``kto``; no mismatched completions, and no reference beside cached ``ref_logps``.
    """

    def loss(policy: Array, reference: Array, desirable: Array, _: Array) -> Array:
        each = losses.apo_zero_unpaired(policy, reference, desirable, beta=beta)
        return jnp.where(desirable, desirable_weight, undesirable_weight) * each

    return _method(model, loss, lambda params, frozen, state, batch: (jnp.zeros(()), state), None, beta)


def bco(
    model: Model, *, beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0, decay: float = 0.9
) -> Method:
    """Binary classifier optimisation (Jung et al. 2024, arXiv:2404.04656): -log σ(±(βh - δ)), + where liked.

    δ = ½ (mean reward of liked + mean reward of other completions), each a running mean with ``decay`` over the batches
    *before* this one: 0 at first, where policy and reference agree, and in evaluation what training left. It is the
    method state: start from ``bco_state()``.

    Args:
      model, beta, desirable_weight, undesirable_weight: as for ``kto``; no mismatched completions are needed.
      decay: how much of the past counts after each batch; 1 for the mean of all of it.
    """

    def baseline(params: Any, frozen: Any, state: Any, batch: Batch) -> tuple[Array, Any]:
        rows = batch.rows
        rewards = beta * (_logps(model, params, batch) - rows.extras["ref_logps"])[..., 0]
        classes = liked(rows), rows.example_mask & ~liked(rows)
        new = jnp.stack([jnp.stack(sum_count(rewards, each)) for each in classes]).astype(state.dtype)
        seen = state[:, 1] > 0
        return jnp.mean(jnp.where(seen, state[:, 0] / jnp.where(seen, state[:, 1], 1), 0)), decay * state + new

    def loss(policy: Array, reference: Array, desirable: Array, delta: Array) -> Array:
        each = losses.bco(policy, reference, desirable, delta, beta=beta)
        return jnp.where(desirable, desirable_weight, undesirable_weight) * each

    return _method(model, loss, baseline, "delta", beta)


def bco_state() -> Float[Array, "2 2"]:
    """BCO's running sums before the first batch: of liked and of other completions, the rewards' sum and how many."""
    return jnp.zeros((2, 2))


def balanced_weights(liked: int, others: int) -> tuple[float, float]:
    """(w_D, w_U) by which w_D n_D / (w_U n_U) is in [1, 4/3] (Ethayarajh et al. 2024, eq. 8): the smaller class is
    weighed up to the nearer end, the larger keeps 1; counts within the bound keep 1 and 1.

    >>> balanced_weights(100, 900), balanced_weights(800, 200), balanced_weights(110, 100)
    ((9.0, 1.0), (1.0, 3.0), (1.0, 1.0))
    """
    if min(liked, others) < 1:
        raise ValueError(f"{liked} completions are liked and {others} are not: there must be both.")
    return max(1.0, others / liked), max(1.0, 3 * liked / (4 * others))


def liked(rows: Rows) -> Bool[Array, "*m R E"]:
    """Which examples are there and were liked."""
    return rows.extras["label"][..., 0] & rows.example_mask


def _logps(model: Model, params: Any, batch: Batch) -> Float[Array, "M R E 1"]:
    if params is None:
        raise ValueError("there is no reference: give its parameters as frozen, or cached ref_logps where they do.")
    return map_microbatches(lambda rows: completion_logps(model, params, rows), batch)


def _method(
    model: Model, loss: Callable[[Array, Array, Array, Array], Array], baseline: Baseline, name: str | None, beta: float
) -> Method:
    """The mean over the batch of ``loss(policy, reference, desirable, baseline)``; ``name``: the baseline's metric."""

    def prepare(params: Any, frozen: Any, method_state: Any, batch: Batch) -> tuple[Batch, Any]:
        extras, used = dict(batch.rows.extras), batch.rows.example_mask
        if "ref_logps" not in extras:
            extras["ref_logps"] = _logps(*reference_of(model, params, frozen), batch)
        batch = dataclasses.replace(batch, rows=dataclasses.replace(batch.rows, extras=extras))
        value, method_state = baseline(params, frozen, method_state, batch)
        more = {"baseline": jnp.broadcast_to(value, used.shape), "weight": used / jnp.maximum(jnp.sum(used), 1)}
        return dataclasses.replace(batch, rows=dataclasses.replace(batch.rows, extras=extras | more)), method_state

    def microbatch_loss(params: Any, rows: Rows) -> tuple[Array, Metrics]:
        logps = completion_logps(model, params, rows)[..., 0]
        ref_logps = jnp.where(rows.example_mask, rows.extras["ref_logps"][..., 0], 0)  # unused slots may hold NaN
        each = loss(logps, ref_logps, liked(rows), rows.extras["baseline"])
        metrics: Metrics = {} if name is None else {name: sum_count(rows.extras["baseline"], rows.example_mask)}
        for label, mask in (("chosen", liked(rows)), ("rejected", rows.example_mask & ~liked(rows))):
            metrics[f"rewards/{label}"] = sum_count(beta * (logps - ref_logps), mask)
            metrics[f"logps/{label}"] = sum_count(logps, mask)
        return jnp.sum(each * rows.extras["weight"]), metrics

    return Method(prepare, microbatch_loss)
