"""Experience of online methods as arrays [B, K, C]: B prompts, K completions per prompt, C tokens per completion.

An online method is a value with four pure functions (``OnlineMethod``):

1. ``measure`` runs the models over the sampled completions once per iteration, in packed rows, without gradients.
2. ``experience`` computes rewards, KL, advantages and controllers over the whole batch. It works on rectangles
   [B, K, C] and does not depend on packing.
3. ``weights`` computes the weight of every token from the mask of a minibatch: the reduction.
4. ``step`` is the loss of one microbatch; microbatches add.

Packing and microbatches therefore never change an update. ``rollouts`` describes the forms that the examples take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxalign.errors import UserError
from jaxalign.logprobs import kl_estimate
from jaxalign.loop import Batch, Method, Metrics
from jaxalign.losses import KLState, metrics
from jaxalign.masking import Rows
from jaxalign.methods.dpo import reference_of
from jaxalign.models.model import Model

Arrays = Any  # NumPy on the host, jax.Array on the device
Tokens = Float[Array, "B K C"]
Completions = Float[Array, "B K"]


class Measurements(NamedTuple):
    """Outputs of the measuring pass, [R, S] in rows; None where the method does not need them.

    Attributes:
        ref_logps: log-probs under the reference, nats.
        values: values that the value model predicts before each token.
    """

    ref_logps: Float[Arrays, "*m R S"] = None
    values: Float[Arrays, "*m R S"] = None


class Experience(NamedTuple):
    """A batch of completions with its scores and measurements.

    Attributes:
        mask: True on sampled tokens, including the end-of-sequence token; False everywhere in unused examples.
        old_logps: log-probs under the policy that sampled, nats.
        scores: the reward of each completion, before shaping.
        finished: whether the completion ended before it reached the maximum length.
        ref_logps: log-probs under the reference, nats; None if the method needs none.
        values: values before each token; None if the method has no value model.
    """

    mask: Bool[Arrays, "B K C"]
    old_logps: Float[Arrays, "B K C"]
    scores: Float[Arrays, "B K"]
    finished: Bool[Arrays, "B K"]
    ref_logps: Float[Arrays, "B K C"] = None
    values: Float[Arrays, "B K C"] = None


class StepInputs(NamedTuple):
    """Inputs of the optimiser steps; None where a method does not use them.

    ``experience`` returns them as [B, K, C] per token or [B, K] per completion. In the rows of a minibatch they are
    extras of the same names, [R, S] or [R, E, K].

    Attributes:
        old_logps: log-probs under the policy that sampled, nats.
        advantages: advantages.
        ref_logps: log-probs under the reference, nats.
        old_values: values before the update.
        returns: targets of the value model.
        beta: price of a nat of KL in the loss.
        weight: weight of the token in the minibatch; ``rollouts.minibatch`` fills it in.
    """

    old_logps: Float[Arrays, "..."] = None
    advantages: Float[Arrays, "..."] = None
    ref_logps: Float[Arrays, "..."] = None
    old_values: Float[Arrays, "..."] = None
    returns: Float[Arrays, "..."] = None
    beta: Float[Arrays, "..."] = None
    weight: Float[Arrays, "..."] = None


class RunningMoments(NamedTuple):
    """Number, mean and Σ (x - mean)² of all values so far."""

    number: Float[Array, ""]
    mean: Float[Array, ""]
    squares: Float[Array, ""]


class OnlineState(NamedTuple):
    """The ``method_state`` of an online method; checkpoints contain all of it.

    Attributes:
        kl: state of the KL controller.
        scores: moments of all scores so far.
        iteration: completed iterations; also the position in the prompts.
        reference: a reference that is refreshed; () where it is fixed, so that checkpoints do not store it.
    """

    kl: KLState
    scores: RunningMoments
    iteration: Int[Array, ""]
    reference: Any = ()


Controller = Callable[[KLState, Array], KLState]
ScalarMetrics = dict[str, Array]


class Outcome(NamedTuple):
    """Result of the arithmetic over a batch.

    Attributes:
        inputs: inputs of the optimiser steps, [B, K, C] or [B, K].
        state: the method state after the iteration.
        metrics: metrics of the batch.
        pairs: completions to learn from, chosen first. A prompt with two equal entries is dropped. None means that
            the steps learn from all completions.
    """

    inputs: StepInputs
    state: OnlineState
    metrics: ScalarMetrics
    pairs: Int[Arrays, "B 2"] = None


class OnlineMethod(NamedTuple):
    """The pure functions of an online method.

    Attributes:
        measure: (params, frozen, rows) -> measurements [R, S] of one microbatch, with one pass of each model; None if
            the method measures nothing. ``frozen`` contains ``reference`` unless the base of adapters is the reference.
        experience: (method_state, experience) -> outcome, over the whole batch.
        weights: mask [N, C] -> weights [N, C] of a minibatch's N completions (``losses.reductions``); None if the step
            computes its own.
        step: loss of a microbatch, whose rows carry ``StepInputs`` as extras.
    """

    measure: Callable[[Any, Mapping[str, Any], Rows], Measurements] | None
    experience: Callable[[OnlineState, Experience], Outcome]
    weights: Callable[[Array], Array] | None
    step: Method


def init_state(beta: float = 0.0, *, reference: Any = ()) -> OnlineState:
    """Returns the state before the first iteration; ``beta`` is the initial price of a nat of KL."""
    zero = jnp.zeros(())
    return OnlineState(
        KLState(jnp.asarray(beta, zero.dtype)), RunningMoments(zero, zero, zero), jnp.int32(0), reference
    )


def observe(moments: RunningMoments, values: Float[Array, "*B"], mask: Bool[Array, "*B"]) -> RunningMoments:
    """Returns the moments with more values included (Chan et al. 1979, the parallel update).

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
    """Returns the sample standard deviation, or 1 while it is zero or unknown."""
    variance = moments.squares / jnp.maximum(moments.number - 1, 1)
    # The inner where keeps the square root's argument positive, so that its gradient stays finite.
    return jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 1)


def raw(scores: Completions, moments: RunningMoments) -> Completions:
    """Returns the scores unchanged."""
    del moments
    return scores


def scaled(scores: Completions, moments: RunningMoments) -> Completions:
    """Returns the scores divided by their running standard deviation."""
    return scores / deviation(moments)


def standardised(scores: Completions, moments: RunningMoments) -> Completions:
    """Returns the scores minus their running mean, divided by their running standard deviation."""
    return (scores - moments.mean) / deviation(moments)


def shape_scores(
    moments: RunningMoments,
    experience: Experience,
    *,
    normaliser: Callable[[Completions, RunningMoments], Completions] = raw,
    clip: float = math.inf,
    missing_eos_penalty: float = 0.0,
) -> tuple[Completions, RunningMoments]:
    """Computes the rewards of completions from their scores.

    r = clip(n(score), ±clip) - penalty · [the completion reached the maximum length]

    Args:
        moments: moments of the scores of earlier batches.
        experience: the batch.
        normaliser: n: ``raw``, ``scaled`` or ``standardised``; it uses the moments with this batch included.
        clip: bound on the normalised score.
        missing_eos_penalty: what a completion loses that did not end.

    Returns:
        (rewards of completions, the moments with this batch included).
    """
    in_use = jnp.any(experience.mask, axis=-1)
    scores = experience.scores.astype(moments.mean.dtype)
    moments = observe(moments, scores, in_use)
    scores = jnp.clip(normaliser(scores, moments), -clip, clip)
    return jnp.where(in_use, scores - missing_eos_penalty * ~experience.finished, 0), moments


def reference_logps(model: Model, params: Any, frozen: Mapping[str, Any], rows: Rows) -> Float[Array, "R S"]:
    """Computes token log-probs under the reference: ``frozen["reference"]``, or the base of the policy's adapters.

    Raises:
        ValueError: If there are neither reference parameters nor adapters.
    """
    reference_model, reference = reference_of(model, params, frozen.get("reference"))
    if reference is None:
        raise ValueError("The method needs a reference. Give frozen={'reference': params}, or a model with adapters.")
    return reference_model.token_logps(reference, rows)


def measure_reference(model: Model, params: Any, frozen: Mapping[str, Any], rows: Rows) -> Measurements:
    """Computes the measurements of methods that only need the reference's log-probs."""
    return Measurements(ref_logps=reference_logps(model, params, frozen, rows))


def advance(
    state: OnlineState, experience: Experience, scores: RunningMoments, controller: Controller
) -> tuple[OnlineState, ScalarMetrics]:
    """Computes the state after the iteration and metrics of the sampled batch.

    KL is Σ_t k1_t (and Σ_t k3_t), nats per completion, averaged over completions. The controller receives the former.
    """
    x, in_use = experience, jnp.any(experience.mask, axis=-1)
    lengths = jnp.sum(x.mask, axis=-1).astype(x.old_logps.dtype)
    measured = {
        "objective/scores": _mean(x.scores, in_use),
        "objective/scores_std": _std(x.scores, in_use),
        "objective/entropy": _mean(-jnp.sum(jnp.where(x.mask, x.old_logps, 0), axis=-1), in_use),
        "completions/length": _mean(lengths, in_use),
        "completions/length_max": jnp.max(lengths),
        "completions/truncated": _mean((~x.finished).astype(lengths.dtype), in_use),
        "objective/beta": state.kl.beta,
    }
    kl_state = state.kl
    if x.ref_logps is not None:
        for name, estimator in (("objective/kl", "k1"), ("objective/kl_k3", "k3")):
            measured[name] = _mean(jnp.sum(token_kl(x, estimator), axis=-1), in_use)
        kl_state = controller(kl_state, measured["objective/kl"])
    return OnlineState(kl_state, scores, state.iteration + 1, state.reference), measured


def token_kl(experience: Experience, estimator: str) -> Tokens:
    """Computes per-token estimates of KL(policy ‖ reference), 0 where masked."""
    mask = experience.mask
    logps, ref_logps = jnp.where(mask, experience.old_logps, 0), jnp.where(mask, experience.ref_logps, 0)
    return kl_estimate(logps, ref_logps, estimator=estimator)


def moment_metrics(name: str, values: Tokens, mask: Bool[Array, "B K C"]) -> ScalarMetrics:
    """Returns the mean and standard deviation of unmasked values, as metrics."""
    return {f"{name}/mean": _mean(values, mask), f"{name}/std": _std(values, mask)}


def step_inputs(rows: Rows) -> StepInputs:
    """Returns the per-token inputs of rows [R, S], 0 where a token does not count."""
    extras = {name: value for name, value in rows.extras.items() if name in StepInputs._fields}
    # Masked slots may contain NaN, and NaN · 0 would be NaN.
    return StepInputs(**{name: jnp.where(rows.mask, value, 0) for name, value in extras.items()})


def step_metrics(
    logps: Array, old_logps: Array, advantages: Array, entropy: Array, losses: Array, mask: Array, **clips: float
) -> Metrics:
    """Returns the metrics of a policy step from values per token, [R, S]; ``clips`` as in ``policy_metrics``."""
    return {
        **metrics.policy_metrics(logps, old_logps, advantages, mask, **clips),
        **metrics.ratio_extremes(logps, old_logps, mask),
        "policy/entropy_avg": metrics.sum_count(entropy, mask),
        "loss/policy_avg": metrics.sum_count(losses, mask),
    }


def prepare_nothing(params: Any, frozen: Any, method_state: Any, batch: Batch) -> tuple[Batch, Any]:
    """Returns batch and method state unchanged: the ``prepare`` of steps whose rows are complete."""
    del params, frozen
    return batch, method_state


def guard(
    metrics: Mapping[str, float], *, max_kl: float = math.inf, min_entropy: float = 0.0, max_ratio: float = math.inf
) -> None:
    """Raises if training has diverged.

    Args:
        metrics: metrics of an iteration.
        max_kl: maximum of ``objective/kl``, nats per completion.
        min_entropy: minimum of ``policy/entropy_avg``, nats per token. Without that metric, the estimate
            ``objective/entropy`` / ``completions/length`` is used.
        max_ratio: maximum of ``policy/ratio_max``.

    Raises:
        UserError: If a limit is exceeded or the loss is not finite.

    >>> guard({"loss": 0.1, "objective/kl": 3.0}, max_kl=10.0)
    >>> guard({"loss": 0.1, "objective/kl": 30.0}, max_kl=10.0)
    Traceback (most recent call last):
    jaxalign.errors.UserError: The policy is 30 nats per completion from its reference (objective/kl), more than 10. ...
    """
    kl, ratio = metrics.get("objective/kl", 0.0), metrics.get("policy/ratio_max", 0.0)
    sampled = metrics.get("objective/entropy", math.inf) / max(metrics.get("completions/length", 1.0), 1.0)
    entropy = metrics.get("policy/entropy_avg", sampled)
    if not math.isfinite(metrics.get("loss", 0.0)):
        raise UserError("The loss is not finite. Lower the learning rate, or clip scores.")
    # "not kl <= max_kl" rather than "kl > max_kl": NaN must raise as well.
    if not kl <= max_kl:
        raise UserError(
            f"The policy is {kl:.4g} nats per completion from its reference (objective/kl), more than {max_kl:g}. "
            "Raise the price of KL, or lower the learning rate."
        )
    if not entropy >= min_entropy:
        raise UserError(
            f"The policy's entropy is {entropy:.3g} nats per token, less than {min_entropy:g}: it "
            "has collapsed. Raise the price of KL, or lower the learning rate."
        )
    if not ratio <= max_ratio:
        raise UserError(
            f"The probability of a token changed {ratio:.3g}-fold (policy/ratio_max), more than {max_ratio:g}. Lower "
            "the learning rate, or take fewer epochs."
        )


def _mean(values: Array, mask: Array) -> Array:
    total, count = metrics.sum_count(values, mask)
    return total / jnp.maximum(count, 1)


def _std(values: Array, mask: Array) -> Array:
    return jnp.sqrt(_mean((values - _mean(values, mask)) ** 2, mask))
