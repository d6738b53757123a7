"""KTO and its relatives: trees of one completion (K = 1), with an extra ``label`` that is True if it was liked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxalign import losses
from jaxalign.errors import UserError
from jaxalign.loop import Batch, Method, Metrics
from jaxalign.losses.metrics import sum_count
from jaxalign.masking import Rows
from jaxalign.methods.dpo import ExtraMetrics, batch_logps, completion_logps, delta_state, reference_of, running_delta
from jaxalign.methods.wirings import Loss, bind
from jaxalign.models.model import Model

# (params, frozen, method_state, batch) -> (a scalar, the new method state).
Baseline = Callable[[Any, Any, Any, Batch], tuple[Array, Any]]


def kto(
    model: Model,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    loss: Loss = losses.kto,
    metrics: ExtraMetrics | None = None,
) -> Method:
    """Returns the method of KTO (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7).

    The loss is the mean over the batch of w_D (1 - σ(β(h - ẑ))) for liked completions and w_U (1 - σ(β(ẑ - h))) for
    others, with h = log π - log π_ref. The reference point ẑ = max(0, mean of h(y' | x)) uses completions y' of other
    prompts (``batch.mismatched``, from ``data.mismatched``). It covers the whole batch and has no gradient.

    The reference is ``frozen``, or the base of the policy's adapters. With ``ref_logps`` [R, E, 1] cached in the trees'
    extras, it only computes the mismatched completions.

    Args:
        model: policy and reference architecture.
        beta: strength of the pull to the reference.
        desirable_weight: w_D (λ_D), the weight of liked completions; see ``balanced_weights``.
        undesirable_weight: w_U (λ_U), the weight of the others.
        loss: a function ``loss(policy_logps, reference_logps, desirable, kl) -> [B]`` to use instead of ``losses.kto``.
            It receives ``beta`` if it has that keyword.
        metrics: further metrics: a function of {argument of the loss: array [R, E]} and ``mask`` [R, E], True on the
            completions in use. It returns {name: (sum, count)}.

    Returns:
        The method, for ``loop.make_step``. Rewards are β h. ``kl`` is ẑ of each batch in nats, also in evaluation.

    Raises:
        UserError: for a loss that does not take four arrays. The first step raises it for a batch without mismatched
            completions or without a reference.
    """

    def baseline(params: Any, frozen: Any, state: Any, batch: Batch) -> tuple[Array, Any]:
        if batch.mismatched is None:
            raise UserError("The batch has no mismatched completions. Draw batches with data.mismatched.Mismatched.")
        policy = batch_logps(model, params, batch.mismatched).reshape(-1)
        reference = batch_logps(*reference_of(model, params, frozen), batch.mismatched).reshape(-1)
        return losses.kto_kl(policy, reference, mask=batch.mismatched.rows.example_mask.reshape(-1)), state

    bound, names, _ = bind(loss, 4, {"beta": beta})
    weights = desirable_weight, undesirable_weight
    return _method(model, bound, baseline, beta, weights, "kl", names=names, metrics=metrics)


def apo_zero_unpaired(
    model: Model,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    metrics: ExtraMetrics | None = None,
) -> Method:
    """Returns the method of APO-zero on single completions (D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7).

    It is KTO with ẑ = 0. It does not need mismatched completions, nor a reference if ``ref_logps`` are cached.

    Args:
        model: as for ``kto``.
        beta: as for ``kto``.
        desirable_weight: as for ``kto``.
        undesirable_weight: as for ``kto``.
        metrics: as for ``kto``.
    """

    def loss(policy: Array, reference: Array, desirable: Array, _: Array) -> Array:
        return losses.apo_zero_unpaired(policy, reference, desirable, beta=beta)

    weights = desirable_weight, undesirable_weight
    return _method(
        model, loss, lambda params, frozen, state, batch: (jnp.zeros(()), state), beta, weights, None, metrics=metrics
    )


def bco(
    model: Model,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    decay: float = 0.9,
    metrics: ExtraMetrics | None = None,
) -> Method:
    """Returns the method of BCO (Jung et al. 2024, arXiv:2404.04656): -log σ(±(βh - δ)), + for liked completions.

    δ = ½ (mean reward of liked + mean reward of other completions). Both are running means with ``decay`` over the
    batches *before* this one. δ starts at 0, because policy and reference agree at first. It is the method state, so
    evaluation uses the value that training reached.

    Args:
        model: policy and reference architecture.
        beta: strength of the pull to the reference.
        desirable_weight: as for ``kto``. Mismatched completions are not needed.
        undesirable_weight: as for ``kto``.
        decay: weight of earlier batches after each batch; 1 gives the mean over all of them.
        metrics: as for ``kto``; the baseline is ``delta``.
    """

    def baseline(params: Any, frozen: Any, state: Any, batch: Batch) -> tuple[Array, Any]:
        rows = batch.rows
        rewards = beta * (batch_logps(model, params, batch) - rows.extras["ref_logps"])[..., 0]
        chosen, rejected = (sum_count(rewards, mask) for mask in (liked(rows), rows.example_mask & ~liked(rows)))
        return running_delta(state, chosen, rejected, decay)

    loss = functools.partial(losses.bco, beta=beta)
    weights = desirable_weight, undesirable_weight
    return _method(model, loss, baseline, beta, weights, "delta", metrics=metrics)._replace(method_state=delta_state())


def balanced_weights(liked: int, others: int) -> tuple[float, float]:
    """Returns (w_D, w_U) for which w_D n_D / (w_U n_U) is in [1, 4/3] (Ethayarajh et al. 2024, eq. 8).

    The smaller class gets the smallest weight that reaches the interval, and the larger class 1. If the counts are
    already in the interval, both are 1.

    >>> balanced_weights(100, 900), balanced_weights(800, 200), balanced_weights(110, 100)
    ((9.0, 1.0), (1.0, 3.0), (1.0, 1.0))
    """
    if min(liked, others) < 1:
        raise ValueError(f"{liked} completions are liked and {others} are not. There must be some of both.")
    return max(1.0, others / liked), max(1.0, 3 * liked / (4 * others))


def liked(rows: Rows) -> Bool[Array, "*m R E"]:
    """Returns True on example slots that are in use and whose completion was liked."""
    return rows.extras["label"][..., 0] & rows.example_mask


def _method(
    model: Model,
    loss: Loss,
    baseline: Baseline,
    beta: float,
    weights: tuple[float, float],
    name: str | None,
    *,
    names: Sequence[str] = (),
    metrics: ExtraMetrics | None = None,
) -> Method:
    """Returns the method of the weighted mean over the batch of ``loss(policy, reference, desirable, baseline)``.

    Args:
        model: policy and reference architecture.
        loss: the loss, with its hyper-parameters bound.
        baseline: computes the baseline of a batch.
        beta: scale of the rewards.
        weights: those of liked and of other completions.
        name: the metric of the baseline; None for no metric.
        names: the loss's own names of its arguments, for ``metrics``.
        metrics: as for ``kto``.
    """
    arguments = ("policy_logps", "reference_logps", "desirable", name or "kl")

    def prepare(params: Any, frozen: Any, method_state: Any, batch: Batch) -> tuple[Batch, Any]:
        used = batch.rows.example_mask
        if "ref_logps" not in batch.rows.extras:
            batch = batch.with_extras(ref_logps=batch_logps(*reference_of(model, params, frozen), batch))
        value, method_state = baseline(params, frozen, method_state, batch)
        weight = used / jnp.maximum(jnp.sum(used), 1)
        return batch.with_extras(baseline=jnp.broadcast_to(value, used.shape), weight=weight), method_state

    def microbatch_loss(params: Any, rows: Rows) -> tuple[Array, Metrics]:
        logps = completion_logps(model, params, rows)[..., 0]
        ref_logps = jnp.where(rows.example_mask, rows.extras["ref_logps"][..., 0], 0)  # unused slots may be NaN
        arrays = logps, ref_logps, liked(rows), rows.extras["baseline"]
        values = jnp.where(liked(rows), *weights) * loss(*arrays)
        measured: Metrics = {} if name is None else {name: sum_count(rows.extras["baseline"], rows.example_mask)}
        for label, mask in (("chosen", liked(rows)), ("rejected", rows.example_mask & ~liked(rows))):
            measured[f"rewards/{label}"] = sum_count(beta * (logps - ref_logps), mask)
            measured[f"logps/{label}"] = sum_count(logps, mask)
        if metrics is not None:
            given = dict(zip(arguments, arrays, strict=True)) | dict(zip(names, arrays, strict=False))
            measured |= metrics({**given, "mask": rows.example_mask})
        return jnp.sum(values * rows.extras["weight"]), measured

    return Method(prepare, microbatch_loss)
