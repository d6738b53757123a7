"""Direct preference optimisation: wiring between models, packed pairs and a preference loss."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxalign import losses
from jaxalign.loop import Batch, Method, Metrics, map_microbatches, order_by_index
from jaxalign.masking import Rows, sum_by_owner
from jaxalign.models import lora
from jaxalign.models.model import Model

CHOSEN, REJECTED = 0, 1


def completion_logps(model: Model, params: Any, rows: Rows) -> Float[Array, "R E K"]:
    """log π(completion | prompt): each completion's token log-probs summed, in nats; 0 in unused slots."""
    return sum_by_owner(model.token_logps(params, rows), rows.owner, *rows.last.shape[-2:])


def reference_of(model: Model, params: Any, frozen: Any) -> tuple[Model, Any]:
    """The reference model and its parameters: ``frozen``, or the base of the policy's adapters, or none (None)."""
    if model.lora is None:
        return model, frozen
    return lora.base(model), lora.without(params) if frozen is None else frozen


# Coupled over the batch (a sort), or defined on length-averaged log-probs: not what this method feeds a loss.
_UNFIT = (losses.aot, losses.aot_unpaired, losses.ipo)


def dpo(
    model: Model,
    *,
    beta: float,
    loss: Callable[..., Array] = losses.dpo,
    soft_labels: bool = False,
    **options: Any,
) -> Method:
    """DPO (Rafailov et al. 2023, arXiv:2305.18290, eq. 7), or a relative on the same four summed log-probs.

    The mean over the batch's examples of ``loss(pc, pr, rc, rr, beta=beta, **options)``. The
    reference is what ``frozen`` holds (parameters of the same model). Where ``frozen`` is None it is the log-probs
    cached in ``rows.extras["ref_logps"]`` [R, E, 2] (see ``reference_logps``) or, without those, the base of the
    policy's adapters (``model.lora``), which costs no memory.

    Args:
      model: policy and reference architecture.
      beta: how strongly the policy is held to the reference.
      loss: a function of four arrays and ``beta`` that treats each example by itself, such as those of
        ``jaxalign.losses`` on summed log-probs.
      soft_labels: take each pair's ``label_smoothing`` from ``rows.extras`` [R, E, 2], as an AI judge's data bring it,
        in place of one number for all.
      **options: further keyword arguments of the loss.
    Returns:
      the method, for ``loop.make_step``. Metrics as people's dashboards name them: rewards are
      ``beta · (log π - log π_ref)``, ties count half in accuracies, ``logps/*`` are sums over tokens in nats.
    Raises:
      ValueError: for a loss that couples examples (``aot``) or wants length-averaged log-probs (``ipo``).
    """
    if loss in _UNFIT:
        raise ValueError(f"loss={loss.__name__}: it is not a function of one example's summed log-probs.")
    objective = functools.partial(loss, beta=beta, **options)

    def prepare(params: Any, frozen: Any, method_state: Any, batch: Batch) -> tuple[Batch, Any]:
        extras = dict(batch.rows.extras)
        reference_model, reference = reference_of(model, params, frozen)
        if reference is not None and (frozen is not None or "ref_logps" not in extras):
            extras["ref_logps"] = map_microbatches(
                lambda rows: completion_logps(reference_model, reference, rows), batch
            )
        counted = batch.rows.example_mask
        extras["weight"] = counted / jnp.maximum(jnp.sum(counted), 1)  # of the whole batch: microbatches add
        return dataclasses.replace(batch, rows=dataclasses.replace(batch.rows, extras=extras)), method_state

    def microbatch_loss(params: Any, rows: Rows) -> tuple[Array, Metrics]:
        logps = completion_logps(model, params, rows)
        ref_logps = jnp.where(rows.example_mask[..., None], rows.extras["ref_logps"], 0)  # unused slots may hold NaN
        chosen, rejected = logps[..., CHOSEN], logps[..., REJECTED]
        ref_chosen, ref_rejected = ref_logps[..., CHOSEN], ref_logps[..., REJECTED]
        doubt = {"label_smoothing": rows.extras["label_smoothing"][..., CHOSEN]} if soft_labels else {}
        per_example = objective(chosen, rejected, ref_chosen, ref_rejected, **doubt)
        measured = pair_metrics(logps, ref_logps, rows.example_mask, beta=beta)
        return jnp.sum(per_example * rows.extras["weight"]), measured

    return Method(prepare, microbatch_loss)


@functools.partial(jax.jit, static_argnums=0)
def _batch_logps(model: Model, params: Any, batch: Batch) -> Float[Array, "M R E K"]:
    return map_microbatches(lambda rows: completion_logps(model, params, rows), batch)


def reference_logps(model: Model, params: Any, batches: Iterable[Batch]) -> Float[np.ndarray, "N K"]:
    """Summed completion log-probs of every example of ``batches``, in nats, in the order of ``extras["index"]``.

    Computed once, before training, and attached to the trees as ``ref_logps`` (``data.batches.attach``), they stand in
    for the reference's parameters.
    """
    return order_by_index((_batch_logps(model, params, batch), batch) for batch in batches)


def implicit_rewards(
    model: Model, params: Any, batches: Iterable[Batch], *, beta: float, frozen: Any = None
) -> Float[np.ndarray, "N K"]:
    """β (log π - log π_ref) of every example's completions, in the order of ``extras["index"]``.

    The reference is the log-probs cached in the trees, or what ``frozen`` holds, or the base of the policy's adapters.
    """
    given = list(batches)
    policy = reference_logps(model, params, given)
    if "ref_logps" in given[0].rows.extras:
        return beta * (policy - order_by_index((batch.rows.extras["ref_logps"], batch) for batch in given))
    return beta * (policy - reference_logps(*reference_of(model, params, frozen), given))


def pair_metrics(
    logps: Float[Array, "R E 2"], ref_logps: Float[Array, "R E 2"], mask: Array, *, beta: float
) -> Metrics:
    """What DPO dashboards show, each as (sum, count) over examples in use."""
    sides = (logps[..., CHOSEN], logps[..., REJECTED], ref_logps[..., CHOSEN], ref_logps[..., REJECTED])
    raw = (jnp.sign(logps[..., CHOSEN] - logps[..., REJECTED]) + 1) / 2
    return {
        **losses.metrics.preference_metrics(*sides, mask, beta=beta),
        "logps/accuracies": losses.metrics.sum_count(raw, mask),
    }
