"""What online methods learn from, as arrays [B, K, C]: B prompts, K completions of each, C tokens of each.

An online method is four pure things (``Online``). Once an iteration the models are run over what was sampled
(``measure``, in packed rows, without gradient), and arithmetic over the whole batch makes of it what each token teaches
(``experience``: rewards, KL, advantages, whitening, controllers). That arithmetic knows no packing: it sees rectangles.
What it gives goes back to the tokens it belongs to, and optimiser steps on minibatches follow (``step``), each reduced
with ``weights`` of the minibatch's whole mask. So neither packing nor microbatches change an update.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxalign.errors import UserError
from jaxalign.logprobs import kl_estimate
from jaxalign.loop import Batch, Method
from jaxalign.losses import KLState
from jaxalign.losses.metrics import sum_count
from jaxalign.masking import Rows
from jaxalign.methods.dpo import reference_of
from jaxalign.models.model import Model

Tokens = Float[Array, "B K C"]
Completions = Float[Array, "B K"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Experience:
    """A batch of completions and what was measured of them.

    Attributes:
      mask: True on the tokens drawn, the end-of-sequence token among them; nowhere where no example is.
      old_logps: log-probs they were drawn with, nats.
      scores: the reward of each completion, as it came.
      finished: whether the completion ended by itself, and not for want of room.
      ref_logps: log-probs under the reference, nats; None if the method needs none.
      values: what the value model expected before each token; None likewise.
    """

    mask: Bool[Array, "B K C"]
    old_logps: Tokens
    scores: Completions
    finished: Bool[Array, "B K"]
    ref_logps: Tokens | None = None
    values: Tokens | None = None


class RunningMoments(NamedTuple):
    """Number, mean and Σ (x - mean)² of all values seen so far."""

    number: Float[Array, ""]
    mean: Float[Array, ""]
    squares: Float[Array, ""]


class OnlineState(NamedTuple):
    """The ``method_state`` of an online method, all of it saved with the train state.

    Attributes:
      kl: the KL controller's.
      scores: moments of all scores so far.
      iteration: iterations done; also the position in the prompts.
      reference: a reference that is refreshed; () where it is fixed, and so needs not be saved.
    """

    kl: KLState
    scores: RunningMoments
    iteration: Int[Array, ""]
    reference: Any = ()


Controller = Callable[[KLState, Array], KLState]
Measured = dict[str, Array]


class Online(NamedTuple):
    """The pure functions of an online method; see the module.

    measure(params, frozen, rows) -> {"ref_logps" | "values": [R, S]}: of one microbatch, in one pass of each model;
      None if there is nothing to measure. ``frozen`` holds ``reference`` where it is not the base of adapters.
    experience(method_state, experience) -> (what goes to each token {name: [B, K, C]}, method_state, metrics).
    weights(mask [N, C]) -> [N, C]: the reduction (``losses.reductions``), of a minibatch's N completions; None if the
      step forms its own.
    step: loss of a microbatch whose rows carry the above and ``weight`` as extras; sums over microbatches add.
    """

    measure: Callable[[Any, Mapping[str, Any], Rows], Measured] | None
    experience: Callable[[OnlineState, Experience], tuple[Measured, OnlineState, Measured]]
    weights: Callable[[Array], Array] | None
    step: Method


def init_state(beta: float = 0.0, *, reference: Any = ()) -> OnlineState:
    """The state before the first iteration; ``beta`` is the price of a nat of KL to begin with."""
    zero = jnp.zeros(())
    return OnlineState(
        KLState(jnp.asarray(beta, zero.dtype)), RunningMoments(zero, zero, zero), jnp.int32(0), reference
    )


def observe(moments: RunningMoments, values: Float[Array, "*B"], mask: Bool[Array, "*B"]) -> RunningMoments:
    """The moments with more values seen (Chan et al. 1979, the parallel update).

    >>> observe(init_state().scores, jnp.array([1.0, 3.0]), jnp.array([True, True]))[1:]
    (Array(2., dtype=float32), Array(2., dtype=float32))
    """
    values = jnp.where(mask, values, 0)
    count = jnp.sum(mask).astype(values.dtype)
    mean = jnp.sum(values) / jnp.maximum(count, 1)
    squares = jnp.sum(jnp.where(mask, values - mean, 0) ** 2)
    total = moments.number + count
    delta, share = mean - moments.mean, count / jnp.maximum(total, 1)
    joined = moments.squares + squares + delta**2 * moments.number * share
    return RunningMoments(total, moments.mean + delta * share, joined)


def deviation(moments: RunningMoments) -> Float[Array, ""]:
    """The sample standard deviation; 1 where none can be told."""
    variance = moments.squares / jnp.maximum(moments.number - 1, 1)
    return jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 1)


def raw(scores: Completions, moments: RunningMoments) -> Completions:
    """Scores as they are."""
    del moments
    return scores


def scaled(scores: Completions, moments: RunningMoments) -> Completions:
    """Scores over their running standard deviation."""
    return scores / deviation(moments)


def standardised(scores: Completions, moments: RunningMoments) -> Completions:
    """Scores less their running mean, over their running standard deviation."""
    return (scores - moments.mean) / deviation(moments)


def shape_scores(
    moments: RunningMoments,
    experience: Experience,
    *,
    normaliser: Callable[[Completions, RunningMoments], Completions] = raw,
    clip: float = math.inf,
    missing_eos_penalty: float = 0.0,
) -> tuple[Completions, RunningMoments]:
    """Scores as rewards: normalised by what has been seen so far, this batch too; clipped; less where no end came.

    r = clip(n(score), ±clip) - penalty · [the completion did not end by itself]

    Args:
      moments: of the scores so far.
      experience: the batch.
      normaliser: n: ``raw``, ``scaled``, ``standardised``.
      clip: bound on the normalised score.
      missing_eos_penalty: what running out of room costs.
    Returns:
      (rewards of completions, the moments with this batch in them).
    """
    there = jnp.any(experience.mask, axis=-1)
    scores = experience.scores.astype(moments.mean.dtype)
    moments = observe(moments, scores, there)
    scores = jnp.clip(normaliser(scores, moments), -clip, clip)
    return jnp.where(there, scores - missing_eos_penalty * ~experience.finished, 0), moments


def reference_logps(model: Model, params: Any, frozen: Mapping[str, Any], rows: Rows) -> Float[Array, "R S"]:
    """Token log-probs under the reference: ``frozen["reference"]``, or the base of the policy's adapters.

    Raises:
      ValueError: without either.
    """
    reference_model, reference = reference_of(model, params, frozen.get("reference"))
    if reference is None:
        raise ValueError("the method needs a reference: give frozen={'reference': params}, or a model with adapters.")
    return reference_model.token_logps(reference, rows)


def advance(
    state: OnlineState, experience: Experience, scores: RunningMoments, controller: Controller
) -> tuple[OnlineState, Measured]:
    """The state after the iteration, its controller told the batch's KL, and metrics of what was sampled.

    KL is Σ_t k1_t, nats per completion, averaged over completions, and the same of k3.
    """
    x, there = experience, jnp.any(experience.mask, axis=-1)
    lengths = jnp.sum(x.mask, axis=-1).astype(x.old_logps.dtype)
    metrics = {
        "objective/scores": _mean(x.scores, there),
        "objective/scores_std": _std(x.scores, there),
        "objective/entropy": _mean(-jnp.sum(jnp.where(x.mask, x.old_logps, 0), axis=-1), there),
        "completions/length": _mean(lengths, there),
        "completions/length_max": jnp.max(lengths),
        "completions/truncated": _mean((~x.finished).astype(lengths.dtype), there),
        "objective/beta": state.kl.beta,
    }
    kl_state = state.kl
    if x.ref_logps is not None:
        for name, estimator in (("objective/kl", "k1"), ("objective/kl_k3", "k3")):
            metrics[name] = _mean(jnp.sum(token_kl(x, estimator), axis=-1), there)
        kl_state = controller(kl_state, metrics["objective/kl"])
    return OnlineState(kl_state, scores, state.iteration + 1, state.reference), metrics


def token_kl(experience: Experience, estimator: str) -> Tokens:
    """Per-token estimates of KL(policy ‖ reference), 0 where masked."""
    x = experience
    assert x.ref_logps is not None
    logps, ref_logps = (jnp.where(x.mask, each, 0) for each in (x.old_logps, x.ref_logps))
    return kl_estimate(logps, ref_logps, estimator=estimator)


def moments_of(name: str, values: Tokens, mask: Bool[Array, "B K C"]) -> Measured:
    """Mean and standard deviation of values that count, as metrics."""
    return {f"{name}/mean": _mean(values, mask), f"{name}/std": _std(values, mask)}


def token_extras(rows: Rows) -> Measured:
    """The per-token inputs of rows, 0 where no token counts, whatever stands there."""
    return {
        name: jnp.where(rows.mask, value, 0) for name, value in rows.extras.items() if value.shape == rows.mask.shape
    }


def as_it_is(params: Any, frozen: Any, method_state: Any, batch: Batch) -> tuple[Batch, Any]:
    """The ``prepare`` of a step whose rows bring everything."""
    del params, frozen
    return batch, method_state


def guard(
    metrics: Mapping[str, float], *, max_kl: float = math.inf, min_entropy: float = 0.0, max_ratio: float = math.inf
) -> None:
    """Stop a run that is coming apart.

    Args:
      metrics: of an iteration.
      max_kl: the largest ``objective/kl``, nats per completion.
      min_entropy: the smallest ``policy/entropy_avg``, nats per token; where a method has none, its estimate from
        what was sampled, ``objective/entropy`` over ``completions/length``.
      max_ratio: the largest ``policy/ratio_max``.
    Raises:
      UserError: in a sentence, for the first of them, or a loss that is no finite number.

    >>> guard({"loss": 0.1, "objective/kl": 3.0}, max_kl=10.0)
    >>> guard({"loss": 0.1, "objective/kl": 30.0}, max_kl=10.0)
    Traceback (most recent call last):
    jaxalign.errors.UserError: the policy is 30 nats a completion from its reference (objective/kl), more than 10: ...
    """
    kl, ratio = metrics.get("objective/kl", 0.0), metrics.get("policy/ratio_max", 0.0)
    sampled = metrics.get("objective/entropy", math.inf) / max(metrics.get("completions/length", 1.0), 1.0)
    entropy = metrics.get("policy/entropy_avg", sampled)
    if not math.isfinite(metrics.get("loss", 0.0)):
        raise UserError("the loss is not finite: lower optim.learning_rate, or clip scores")
    if not kl <= max_kl:
        raise UserError(
            f"the policy is {kl:.4g} nats a completion from its reference (objective/kl), more than {max_kl:g}: "
            "raise the price of KL, or lower optim.learning_rate"
        )
    if not entropy >= min_entropy:
        raise UserError(
            f"the policy's entropy is {entropy:.3g} nats a token, less than {min_entropy:g}: it "
            "has collapsed; raise the price of KL, or lower optim.learning_rate"
        )
    if not ratio <= max_ratio:
        raise UserError(
            f"a token's probability changed {ratio:.3g}-fold (policy/ratio_max), more than {max_ratio:g}: lower "
            "optim.learning_rate, or take fewer epochs"
        )


def _mean(values: Array, mask: Array) -> Array:
    total, count = sum_count(values, mask)
    return total / jnp.maximum(count, 1)


def _std(values: Array, mask: Array) -> Array:
    return jnp.sqrt(_mean((values - _mean(values, mask)) ** 2, mask))
