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
# Log-probs in unused slots, in the order of ARGUMENTS. Whichever difference a coupled loss sorts, they come last.
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

        L = 1/B Σ_i w_i Σ_l weight_l · loss_l(pair i) + c · NLL of the chosen completions per token

    The sums are over the whole batch. The reference is ``frozen``, parameters of the same model. If that is None, it is
    the log-probs cached in ``rows.extras["ref_logps"]`` [R, E, 2] (see ``reference_logps``). Without those it is the
    base of the policy's adapters (``model.lora``), which needs no further memory.

    Args:
        model: policy and reference architecture.
        loss: a preference loss of ``jaxalign.losses``, wired by ``wirings.WIRINGS``; a function
            ``loss(pc, pr, rc, rr) -> [B]`` of summed log-probs; ``losses.nll`` for SFT on the chosen completions; or
            {loss: weight} for a weighted sum, such as MPO.
        average: whether log-probs are averaged (True) or summed (False) over tokens; by default as the loss is wired.
        sft: c, coefficient of the SFT term; by default that of the loss's paper (1 for ``cpo`` and ``orpo``).
        wpo: weigh each pair by its likelihood under the policy (WPO, Zhou et al. 2024, arXiv:2406.11827).
        ld_alpha: weight of the tokens beyond the length of the shorter completion (LD-DPO, Liu et al. 2024,
            arXiv:2409.06411). Cached reference log-probs must have been computed with the same value.
        soft_labels: use each pair's ``label_smoothing`` in ``rows.extras`` [R, E, 2]; AI judges' labels have one.
        metrics: further metrics: a function of {argument of the loss: array [R, E]} and ``mask`` [R, E], True on the
            pairs in use. It returns {name: (sum, count)}.
        **options: hyper-parameters of the loss.

    Returns:
        The method, for ``loop.make_step``, with its first state. Rewards are ``beta · (log π - log π_ref)``, with
        log-probs as the first loss takes them, or ``beta · log π`` without a reference. Ties count half in accuracies.
        ``logps/*`` are sums over tokens in nats.

    Raises:
        UserError: for a loss that is not one of pairs, or for a hyper-parameter that is missing or that no loss takes.
            Losses that sort the batch do not take weights of pairs.
    """
    # A placeholder shows ``wire`` that soft labels give a value; the loss then gets one for each pair.
    terms, added = wire(loss, average=average, **options | ({"label_smoothing": 0.25} if soft_labels else {}))
    coupled = [term for term in terms if term.wiring.coupled]
    if coupled and (wpo or soft_labels):
        raise UserError(f"loss={name_of(coupled[0].loss)} sorts the batch and takes no weights or labels of pairs.")
    unused = {"average": average is not None, "wpo": wpo, "ld_alpha": ld_alpha is not None}
    if not terms and any(unused.values()):
        names = " and ".join(name for name, is_set in unused.items() if is_set)
        raise UserError(f"loss=nll does not use {names}. Leave it out, or add a loss of pairs.")
    weight = added if sft is None else sft
    wired = _WiredLoss(model, terms, options.get("beta", 1.0), weight, wpo, ld_alpha, soft_labels, metrics)
    return Method(wired.prepare, wired.loss, delta_state() if wired.uses("running_delta") else ())


@dataclasses.dataclass(frozen=True)
class _WiredLoss:
    """A wired preference loss; ``prepare`` and ``loss`` are the functions of its method."""

    model: Model
    terms: tuple[Term, ...]
    beta: float
    sft: float
    wpo: bool
    ld_alpha: float | None
    soft_labels: bool
    metrics: ExtraMetrics | None

    def uses(self, attribute: str) -> bool:
        """Returns whether this attribute of ``Wiring`` is set for any term."""
        return any(getattr(term.wiring, attribute) for term in self.terms)

    def prepare(self, params: Any, frozen: Any, method_state: Any, batch: Batch) -> tuple[Batch, Any]:
        """Attaches the reference's log-probs, and what depends on the whole batch: weights, slopes and δ."""
        extras, used = dict(batch.rows.extras), batch.rows.example_mask
        if self.uses("reference") and (frozen is not None or "ref_logps" not in extras):
            extras["ref_logps"] = batch_logps(*reference_of(self.model, params, frozen), batch, self.ld_alpha)
        extras["weight"] = used / jnp.maximum(jnp.sum(used), 1)  # of the whole batch: microbatches add
        if self.sft:
            tokens = _chosen_tokens(batch.rows)
            extras["sft_weight"] = tokens / jnp.maximum(jnp.sum(tokens), 1)
        if self.uses("coupled") or self.uses("running_delta"):
            logps = batch_logps(self.model, params, batch, self.ld_alpha)
            ref_logps = jnp.where(used[..., None], extras["ref_logps"] if self.uses("reference") else 0, 0)
            if coupled := [term for term in self.terms if term.wiring.coupled]:
                lengths = completion_lengths(batch.rows)
                value, extras["slope"] = _coupled(coupled, logps, ref_logps, lengths, used)
                extras["coupled"] = value * extras["weight"]
            if self.uses("running_delta"):
                rewards = self.beta * (logps - ref_logps)
                chosen, rejected = (sum_count(rewards[..., side], used) for side in (CHOSEN, REJECTED))
                delta, method_state = running_delta(method_state, chosen, rejected)
                extras["delta"] = jnp.broadcast_to(delta, used.shape)
        return batch.with_extras(**extras), method_state

    def loss(self, params: Any, rows: Rows) -> tuple[Array, Metrics]:
        """Computes the loss of a microbatch and its metrics."""
        mask, extras, lengths = rows.example_mask, rows.extras, completion_lengths(rows)
        tokens, likelihood = self._tokens(params, rows)
        logps = _weigh_and_sum(tokens, rows, self.ld_alpha)
        # Unused slots may contain NaN, whose gradient a later product with 0 would not remove.
        reference = extras["ref_logps"] if self.uses("reference") else jnp.zeros_like(logps)
        ref_logps = jnp.where(mask[..., None], reference, 0)
        per_pair = {}
        if self.soft_labels:
            per_pair["label_smoothing"] = jnp.where(mask, extras["label_smoothing"][..., CHOSEN], 0)
        if self.uses("running_delta"):
            per_pair["delta"] = extras["delta"]
        values = jnp.zeros(mask.shape, logps.dtype)
        for term in self.terms:
            if not term.wiring.coupled:
                given = {name: value for name, value in per_pair.items() if name in term.takes}
                values += term.weight * term.loss(*_arguments(term.wiring, logps, ref_logps, lengths), **given)
        total = jnp.sum(values * likelihood * extras["weight"])
        if self.uses("coupled"):  # the value of the whole batch's loss, and the slope of each log-prob in it
            total += jnp.sum(extras["coupled"]) + jnp.sum(extras["slope"] * (logps - jax.lax.stop_gradient(logps)))
        wiring = self.terms[0].wiring if self.terms else Wiring(reference=False)
        scale = jnp.maximum(lengths, 1) if wiring.average else 1.0
        measured = pair_metrics(logps, ref_logps, mask, beta=self.beta, scale=scale)
        if self.sft:
            total += self.sft * jnp.sum(losses.nll(tokens) * extras["sft_weight"])
            measured["nll"] = sum_count(losses.nll(tokens), _chosen_tokens(rows))
        if self.uses("running_delta"):
            measured["delta"] = sum_count(extras["delta"], mask)
        if self.metrics is not None:
            arrays = _arguments(wiring, logps, ref_logps, lengths)
            own = dict(zip(self.terms[0].names, arrays, strict=False)) if self.terms else {}
            measured |= self.metrics({**dict(zip(ARGUMENTS, arrays, strict=False)), **own, **per_pair, "mask": mask})
        return total, measured

    def _tokens(self, params: Any, rows: Rows) -> tuple[Float[Array, "R S"], Float[Array, "R E"] | float]:
        """Computes token log-probs, and the weights that WPO gives to pairs."""
        if not self.wpo:
            return self.model.token_logps(params, rows), 1.0
        tokens, _, log_sum_sq = self.model.token_statistics(params, self.model.predictors(params, rows), rows)
        # The arithmetic of losses.wpo_weights, in the layout of rows.
        ratios = completion_sums(tokens - log_sum_sq, rows) / jnp.maximum(completion_lengths(rows), 1)
        return tokens, jnp.exp(jax.lax.stop_gradient(jnp.sum(ratios, axis=-1)))


def completion_logps(model: Model, params: Any, rows: Rows, ld_alpha: float | None = None) -> Float[Array, "R E K"]:
    """Returns log π(completion | prompt): the sum of each completion's token log-probs in nats, 0 in unused slots."""
    return _weigh_and_sum(model.token_logps(params, rows), rows, ld_alpha)


def batch_logps(model: Model, params: Any, batch: Batch, ld_alpha: float | None = None) -> Float[Array, "M R E K"]:
    """Returns ``completion_logps`` of all microbatches.

    Raises:
        UserError: if the parameters are None, as those of a missing reference are.
    """
    if params is None:
        raise UserError("The loss needs a reference. Give its parameters as frozen, or attach ref_logps to the trees.")
    return map_microbatches(lambda rows: completion_logps(model, params, rows, ld_alpha), batch)


def reference_of(model: Model, params: Any, frozen: Any) -> tuple[Model, Any]:
    """Returns the reference model and its parameters.

    They are ``frozen``, or the base of the policy's adapters. Without both they are None.
    """
    if model.lora is None:
        return model, frozen
    return lora.base_model(model), lora.base_params(params) if frozen is None else frozen


def reference_logps(
    model: Model, params: Any, batches: Iterable[Batch], *, ld_alpha: float | None = None
) -> Float[np.ndarray, "N K"]:
    """Returns the summed log-probs of every example's completions in nats, in the order of ``extras["index"]``.

    Compute them once before training and attach them to the trees as ``ref_logps`` (``data.batches.attach``). The
    method then does not need the reference's parameters.
    """
    return per_example(_of_alpha(ld_alpha), model, params, batches)


def implicit_rewards(
    model: Model, params: Any, batches: Iterable[Batch], *, beta: float, frozen: Any = None
) -> Float[np.ndarray, "N K"]:
    """Returns β (log π - log π_ref) of every example's completions, in the order of ``extras["index"]``.

    The reference is the log-probs cached in the trees, or ``frozen``, or the base of the policy's adapters.
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
    """Sums each completion's token log-probs; those beyond the shortest completion's length are times ``ld_alpha``."""
    if ld_alpha is None:
        return completion_sums(tokens, rows)
    shared = jnp.broadcast_to(jnp.min(completion_lengths(rows), axis=-1, keepdims=True), rows.last.shape)
    place = jnp.cumsum(rows.mask, axis=-1)  # counted over the row; ``before`` counts the earlier completions' tokens
    before = jnp.cumsum(completion_lengths(rows).reshape(*rows.last.shape[:-2], -1), axis=-1)
    before = before.reshape(rows.last.shape) - completion_lengths(rows)
    beyond = place > take_by_owner(before + shared, rows.owner)
    return completion_sums(jnp.where(beyond, ld_alpha, 1.0) * tokens, rows)


def _arguments(
    wiring: Wiring, logps: Float[Array, "R E 2"], ref_logps: Float[Array, "R E 2"], lengths: Float[Array, "R E 2"]
) -> list[Float[Array, "R E"]]:
    """Returns (pc, pr, rc, rr) or (pc, pr), summed or averaged over tokens, as the loss takes them."""
    arrays = [logps, ref_logps] if wiring.reference else [logps]
    scale = jnp.maximum(lengths, 1) if wiring.average else 1
    return [(array / scale)[..., side] for array in arrays for side in (CHOSEN, REJECTED)]


def _coupled(
    terms: Sequence[Term], logps: Array, ref_logps: Array, lengths: Array, used: Bool[Array, "M R E"]
) -> tuple[Float[Array, ""], Float[Array, "M R E 2"]]:
    """Computes the mean of losses that sort the whole batch, and its gradient ∂L/∂logps."""
    count = jnp.sum(used)

    def mean(logps: Array) -> Array:
        total = jnp.zeros((), logps.dtype)
        for term in terms:
            arrays = _arguments(term.wiring, logps, ref_logps, lengths)
            arrays = [jnp.where(used, x, last).reshape(-1) for x, last in zip(arrays, LAST, strict=False)]
            values = term.loss(*arrays)  # values belong to quantiles, not to pairs; those of unused slots are last
            total += term.weight * jnp.sum(jnp.where(jnp.arange(used.size) < count, values, 0))
        return total / jnp.maximum(count, 1)

    return jax.value_and_grad(mean)(logps)


def _chosen_tokens(rows: Rows) -> Bool[Array, "*m R S"]:
    """Returns True on the target slots of chosen completions that count."""
    return rows.mask & (rows.owner % rows.last.shape[-1] == CHOSEN) & (rows.owner >= 0)
