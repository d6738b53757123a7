"""Training on preference pairs: DPO, its relatives, and the losses without a reference, on one path.

``wirings`` has the table of what each loss takes. A microbatch of R rows and E example slots gives arrays [R, E]::

    token log-probs [R, S] -> sums or averages of each completion [R, E, 2] -> loss per pair [R, E] -> weighted sum
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxalign import losses
from jaxalign.errors import UserError
from jaxalign.loop import Batch, Method, Metrics, map_microbatches, order_by_index, per_example
from jaxalign.losses.metrics import SumCount, sum_count
from jaxalign.masking import Rows, completion_lengths, completion_sums, take_by_owner
from jaxalign.methods.wirings import Loss, Term, Wiring, name_of, wire
from jaxalign.models import lora
from jaxalign.models.model import Model

CHOSEN, REJECTED = 0, 1
# The names of a preference loss's arguments, as ``metrics`` functions are given them.
ARGUMENTS = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")
# Log-probs in unused slots, in the order of ARGUMENTS: whatever difference a coupled loss sorts, they come last.
LAST = (2e9, 1e9, 1e9, 0.0)
ExtraMetrics = Callable[[dict[str, Array]], Metrics]


def dpo(
    model: Model,
    *,
    loss: Loss | Mapping[Loss, float] = losses.dpo,
    average: bool | None = None,
    sft: float | None = None,
    wpo: bool = False,
    ld_alpha: float | None = None,
    soft_labels: bool = False,
    metrics: ExtraMetrics | None = None,
    **options: Any,
) -> Method:
    """Returns the method of a preference loss on pairs, such as DPO (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

    L = 1/B Σ_i w_i Σ_l weight_l · loss_l(pair i) + c · NLL of the chosen completions per token, over the whole batch.

    The reference is ``frozen`` (parameters of the same model). Where ``frozen`` is None it is the log-probs cached in
    ``rows.extras["ref_logps"]`` [R, E, 2] (see ``reference_logps``) or, without those, the base of the policy's
    adapters (``model.lora``), which costs no memory. Losses without a reference compute none.

    Args:
        model: policy and reference architecture.
        loss: a preference loss of ``jaxalign.losses``, wired by ``wirings.WIRINGS``; a function
            ``loss(pc, pr, rc, rr) -> [B]`` of summed log-probs; ``losses.nll`` for SFT on the chosen completions; or
            {loss: weight} for a weighted sum, such as MPO.
        average: give the loss log-probs averaged over tokens (True) or summed (False), in place of what it is wired to.
        sft: c, coefficient of the SFT term; by default what the loss's paper adds (1 for ``cpo`` and ``orpo``).
        wpo: weigh each pair by how likely the policy is to write it (WPO, Zhou et al. 2024, arXiv:2406.11827).
        ld_alpha: weight of the tokens beyond the length of the shorter completion (LD-DPO, Liu et al. 2024,
            arXiv:2409.06411). Cached reference log-probs must have been computed with the same one.
        soft_labels: take each pair's ``label_smoothing`` from ``rows.extras`` [R, E, 2] (data labelled by an AI judge
            bring it) in place of one number for all.
        metrics: further metrics: a function of {argument of the loss: array [R, E]} with ``mask`` [R, E], True on the
            pairs in use, that returns {name: (sum, count)}.
        **options: hyper-parameters of the loss.

    Returns:
        The method, for ``loop.make_step``, with the state to start from. Rewards are ``beta · (log π - log π_ref)`` as
        the (first) loss takes the log-probs, ``beta · log π`` without a reference. Ties count half in accuracies.
        ``logps/*`` are sums over tokens in nats.

    Raises:
        UserError: for a loss that is not one of pairs, a hyper-parameter that is missing or that no loss takes, or
            weights of pairs for a loss that sorts the batch.
    """
    # A placeholder shows ``wire`` that soft labels give a value; the loss then gets one for each pair.
    terms, added = wire(loss, average=average, **options | ({"label_smoothing": 0.25} if soft_labels else {}))
    sft = added if sft is None else sft
    coupled = [term for term in terms if term.wiring.coupled]
    single = [term for term in terms if not term.wiring.coupled]
    if coupled and (wpo or soft_labels):
        raise UserError(f"loss={name_of(coupled[0].loss)} sorts the batch and takes no weights or labels of pairs.")
    wiring = terms[0].wiring if terms else Wiring(reference=False)
    has_reference = any(term.wiring.reference for term in terms)
    has_delta = any(term.wiring.running_delta for term in terms)
    beta = options.get("beta", 1.0)

    def prepare(params: Any, frozen: Any, method_state: Any, batch: Batch) -> tuple[Batch, Any]:
        extras, used = dict(batch.rows.extras), batch.rows.example_mask
        if has_reference:
            reference_model, reference = reference_of(model, params, frozen)
            if reference is not None and (frozen is not None or "ref_logps" not in extras):
                extras["ref_logps"] = map_microbatches(
                    lambda rows: completion_logps(reference_model, reference, rows, ld_alpha), batch
                )
            if "ref_logps" not in extras:
                raise UserError("The loss needs a reference. Give its parameters as frozen, or attach ref_logps.")
        extras["weight"] = used / jnp.maximum(jnp.sum(used), 1)  # of the whole batch: microbatches add
        if sft:
            chosen = _chosen_tokens(batch.rows)
            extras["sft_weight"] = chosen / jnp.maximum(jnp.sum(chosen), 1)
        if coupled or has_delta:
            logps = map_microbatches(lambda rows: completion_logps(model, params, rows, ld_alpha), batch)
            ref_logps = jnp.where(used[..., None], extras["ref_logps"] if has_reference else 0, 0)
            if coupled:
                lengths = completion_lengths(batch.rows)
                value, extras["slope"] = _coupled(coupled, logps, ref_logps, lengths, used)
                extras["coupled"] = value * extras["weight"]
            if has_delta:
                liked, other = (sum_count(beta * (logps - ref_logps)[..., side], used) for side in (CHOSEN, REJECTED))
                delta, method_state = running_delta(method_state, liked, other)
                extras["delta"] = jnp.broadcast_to(delta, used.shape)
        return dataclasses.replace(batch, rows=dataclasses.replace(batch.rows, extras=extras)), method_state

    def microbatch_loss(params: Any, rows: Rows) -> tuple[Array, Metrics]:
        if wpo:
            tokens, _, log_sum_sq = model.token_statistics(params, model.predictors(params, rows), rows)
        else:
            tokens = model.token_logps(params, rows)
        mask, extras, lengths = rows.example_mask, rows.extras, completion_lengths(rows)
        logps = _weigh_and_sum(tokens, rows, ld_alpha)
        # Unused slots may hold NaN, whose gradient a later product with 0 would not remove.
        ref_logps = jnp.where(mask[..., None], extras["ref_logps"], 0) if has_reference else jnp.zeros_like(logps)
        per_pair = {}
        if soft_labels:
            per_pair["label_smoothing"] = jnp.where(mask, extras["label_smoothing"][..., CHOSEN], 0)
        if has_delta:
            per_pair["delta"] = extras["delta"]
        values = jnp.zeros(mask.shape, logps.dtype)
        for term in single:
            given = {name: value for name, value in per_pair.items() if name in term.takes}
            values += term.weight * term.loss(*_arguments(term.wiring, logps, ref_logps, lengths), **given)
        if wpo:
            # The arithmetic of losses.wpo_weights, in the layout of rows.
            ratios = completion_sums(tokens - log_sum_sq, rows) / jnp.maximum(lengths, 1)
            values *= jnp.exp(jax.lax.stop_gradient(jnp.sum(ratios, axis=-1)))
        total = jnp.sum(values * extras["weight"])
        if coupled:  # the value of the whole batch's loss, and the slope of each log-prob in it
            total += jnp.sum(extras["coupled"]) + jnp.sum(extras["slope"] * (logps - jax.lax.stop_gradient(logps)))
        if sft:
            total += sft * jnp.sum(losses.nll(tokens) * extras["sft_weight"])
        scale = jnp.maximum(lengths, 1) if wiring.average else 1.0
        measured = pair_metrics(logps, ref_logps, mask, beta=beta, scale=scale)
        if sft:
            measured["nll"] = sum_count(losses.nll(tokens), _chosen_tokens(rows))
        if has_delta:
            measured["delta"] = sum_count(extras["delta"], mask)
        if metrics is not None:
            arrays = _arguments(wiring, logps, ref_logps, lengths)
            own = dict(zip(terms[0].names, arrays, strict=False)) if terms else {}
            measured |= metrics({**dict(zip(ARGUMENTS, arrays, strict=False)), **own, **per_pair, "mask": mask})
        return total, measured

    return Method(prepare, microbatch_loss, delta_state() if has_delta else ())


def completion_logps(model: Model, params: Any, rows: Rows, ld_alpha: float | None = None) -> Float[Array, "R E K"]:
    """Returns log π(completion | prompt): the sum of each completion's token log-probs in nats, 0 in unused slots."""
    return _weigh_and_sum(model.token_logps(params, rows), rows, ld_alpha)


def reference_of(model: Model, params: Any, frozen: Any) -> tuple[Model, Any]:
    """The reference model and its parameters: ``frozen``, or the base of the policy's adapters, or none (None)."""
    if model.lora is None:
        return model, frozen
    return lora.base_model(model), lora.base_params(params) if frozen is None else frozen


def reference_logps(
    model: Model, params: Any, batches: Iterable[Batch], *, ld_alpha: float | None = None
) -> Float[np.ndarray, "N K"]:
    """Returns the summed log-probs of every example's completions in nats, in the order of ``extras["index"]``.

    Computed once, before training, and attached to the trees as ``ref_logps`` (``data.batches.attach``), they stand in
    for the reference's parameters.
    """
    return per_example(_of_alpha(ld_alpha), model, params, batches)


def implicit_rewards(
    model: Model, params: Any, batches: Iterable[Batch], *, beta: float, frozen: Any = None
) -> Float[np.ndarray, "N K"]:
    """Returns β (log π - log π_ref) of every example's completions, in the order of ``extras["index"]``.

    The reference is the log-probs cached in the trees, or what ``frozen`` holds, or the base of the policy's adapters.
    """
    given = list(batches)
    policy = reference_logps(model, params, given)
    if "ref_logps" in given[0].rows.extras:
        return beta * (policy - order_by_index((batch.rows.extras["ref_logps"], batch) for batch in given))
    return beta * (policy - reference_logps(*reference_of(model, params, frozen), given))


def pair_metrics(
    logps: Float[Array, "R E 2"],
    ref_logps: Float[Array, "R E 2"],
    mask: Bool[Array, "R E"],
    *,
    beta: float,
    scale: Array | float = 1.0,
) -> Metrics:
    """Returns the metrics of DPO dashboards, as (sum, count) over the pairs in use; rewards are β h / ``scale``."""
    pc, pr, rc, rr = ((array / scale)[..., side] for array in (logps, ref_logps) for side in (CHOSEN, REJECTED))
    return {
        **losses.metrics.preference_metrics(pc, pr, rc, rr, mask, beta=beta),
        "logps/chosen": sum_count(logps[..., CHOSEN], mask),
        "logps/rejected": sum_count(logps[..., REJECTED], mask),
        "logps/accuracies": sum_count((jnp.sign(logps[..., CHOSEN] - logps[..., REJECTED]) + 1) / 2, mask),
    }


def delta_state() -> Float[Array, "2 2"]:
    """Returns the running sums of δ before the first batch: (sum, count) of chosen and of rejected rewards."""
    return jnp.zeros((2, 2))


def running_delta(
    state: Float[Array, "2 2"], chosen: SumCount, rejected: SumCount, decay: float = 0.9
) -> tuple[Float[Array, ""], Float[Array, "2 2"]]:
    """Returns BCO's δ of the batches before this one, and the state with this one's rewards added.

    δ = ½ (mean of chosen rewards + mean of rejected rewards), each a running mean (Jung et al. 2024, arXiv:2404.04656).
    """
    seen = state[:, 1] > 0
    delta = jnp.mean(jnp.where(seen, state[:, 0] / jnp.where(seen, state[:, 1], 1), 0))
    return delta, decay * state + jnp.stack([jnp.stack(chosen), jnp.stack(rejected)]).astype(state.dtype)


@functools.cache
def _of_alpha(ld_alpha: float | None) -> Callable[[Model, Any, Rows], Array]:
    # One function for each α, so that ``per_example`` finds the program it compiled before.
    return functools.partial(completion_logps, ld_alpha=ld_alpha)


def _weigh_and_sum(tokens: Float[Array, "R S"], rows: Rows, ld_alpha: float | None) -> Float[Array, "R E 2"]:
    """Σ_t of each completion's token log-probs, those beyond the length of the shortest one times ``ld_alpha``."""
    if ld_alpha is None:
        return completion_sums(tokens, rows)
    shared = jnp.broadcast_to(jnp.min(completion_lengths(rows), axis=-1, keepdims=True), rows.last.shape)
    place = jnp.cumsum(rows.mask, axis=-1)  # over the row; minus what comes before the completion, over its own tokens
    before = jnp.cumsum(completion_lengths(rows).reshape(*rows.last.shape[:-2], -1), axis=-1)
    before = before.reshape(rows.last.shape) - completion_lengths(rows)
    beyond = place > take_by_owner(before + shared, rows.owner)
    return completion_sums(jnp.where(beyond, ld_alpha, 1.0) * tokens, rows)


def _arguments(
    wiring: Wiring, logps: Float[Array, "R E 2"], ref_logps: Float[Array, "R E 2"], lengths: Float[Array, "R E 2"]
) -> list[Float[Array, "R E"]]:
    """(pc, pr, rc, rr) or (pc, pr), summed or averaged over tokens, as the loss takes them."""
    arrays = [logps, ref_logps] if wiring.reference else [logps]
    scale = jnp.maximum(lengths, 1) if wiring.average else 1
    return [(array / scale)[..., side] for array in arrays for side in (CHOSEN, REJECTED)]


def _coupled(
    terms: Sequence[Term], logps: Array, ref_logps: Array, lengths: Array, used: Bool[Array, "M R E"]
) -> tuple[Float[Array, ""], Float[Array, "M R E 2"]]:
    """The mean of losses that sort the whole batch, and its gradient ∂L/∂logps."""
    count = jnp.sum(used)

    def mean(logps: Array) -> Array:
        total = jnp.zeros((), logps.dtype)
        for term in terms:
            arrays = _arguments(term.wiring, logps, ref_logps, lengths)
            arrays = [jnp.where(used, x, last).reshape(-1) for x, last in zip(arrays, LAST, strict=False)]
            values = term.loss(*arrays)  # those of unused slots are last: values belong to quantiles, not to pairs
            total += term.weight * jnp.sum(jnp.where(jnp.arange(used.size) < count, values, 0))
        return total / jnp.maximum(count, 1)

    return jax.value_and_grad(mean)(logps)


def _chosen_tokens(rows: Rows) -> Bool[Array, "*m R S"]:
    """The target slots of chosen completions that count."""
    return rows.mask & (rows.owner % rows.last.shape[-1] == CHOSEN) & (rows.owner >= 0)
