"""Optimisers and learning-rate schedules, as optax transformations built from a small configuration."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import optax

from jaxalign.errors import UserError
from jaxalign.settings import check_ranges


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Settings of the optimiser and its schedule.

    Args:
        optimizer: adamw, lion, adafactor (factored second moments, no momentum, updates clipped to RMS 1) or sgd
        learning_rate: peak of the schedule
        schedule: shape after the warm-up, until the last step
        warmup_ratio: share of all steps spent rising linearly from 0 to the peak
        warmup_steps: the same as a number of steps; takes precedence over warmup_ratio
        final_fraction: learning rate of the last step as a fraction of the peak (linear and cosine)
        weight_decay: decoupled decay, multiplied by the learning rate; not on norm scales and biases
        b1: decay of the first moment (adamw, lion), momentum (sgd)
        b2: decay of the second moment (adamw), of the momentum (lion, whose authors take 0.99)
        eps: added to the root of the second moment (adamw)
        max_grad_norm: gradients are scaled down to this global L2 norm; null for no clipping
    """

    optimizer: Literal["adamw", "lion", "adafactor", "sgd"] = "adamw"
    learning_rate: float = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_ratio: float = 0.1
    warmup_steps: int | None = None
    final_fraction: float = 0.0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    max_grad_norm: float | None = 1.0


def make_schedule(config: OptimConfig, num_steps: int) -> optax.Schedule:
    """Returns the learning rate by step: a linear rise from 0 to the peak, then the decay.

    Args:
        config: settings.
        num_steps: optimiser steps of the whole run, at which the decay ends.

    Returns:
        a function of the step (from 0) to the learning rate.

    Raises:
        UserError: if a number is negative or not finite, or the warm-up is longer than the run.

    >>> rate = make_schedule(OptimConfig(learning_rate=1.0, schedule="linear", warmup_steps=2), num_steps=6)
    >>> [float(rate(step)) for step in range(7)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    _check_config(config)
    warmup = config.warmup_steps if config.warmup_steps is not None else math.ceil(config.warmup_ratio * num_steps)
    if warmup > num_steps:
        raise UserError(
            f"optim.warmup_steps is {warmup}, but the run has {num_steps} steps. Lower it, or use optim.warmup_ratio."
        )
    peak, rest = config.learning_rate, max(num_steps - warmup, 1)
    match config.schedule:
        case "constant":
            decay = optax.constant_schedule(peak)
        case "linear":
            decay = optax.linear_schedule(peak, peak * config.final_fraction, rest)
        case "cosine":
            decay = optax.cosine_decay_schedule(peak, rest, alpha=config.final_fraction)
    if warmup == 0:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def decay_mask(params: Any) -> Any:
    """Returns True for leaves with weight decay: all but norm scales and biases (named ``scale`` and ``bias``).

    The choice is by name, because layers are stacked and a norm scale is a matrix here. Embeddings decay, as in the
    Hugging Face trainer (a tied embedding is the output head).

    >>> decay_mask({"norm": {"scale": 1.0}, "q": {"kernel": 1.0, "bias": 1.0}})
    {'norm': {'scale': False}, 'q': {'bias': False, 'kernel': True}}
    """
    without = ("scale", "bias")
    return jax.tree.map_with_path(lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) not in without, params)


def make_optimizer(config: OptimConfig, num_steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns an optimiser with gradient clipping, decoupled weight decay and a learning-rate schedule.

        p ← p - η_t (direction(clip(g)) + λ p)

    Every optimiser adds the decay after the direction and before the learning rate. For adamw this is ``optax.adamw``.

    Args:
        config: settings.
        num_steps: optimiser steps of the whole run.

    Returns:
        the optax transformation, and its schedule for logging.

    Raises:
        UserError: as ``make_schedule``.

    Source: Loshchilov & Hutter 2017, arXiv:1711.05101.
    """
    schedule = make_schedule(config, num_steps)
    match config.optimizer:
        case "adamw":
            direction = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
        case "lion":
            direction = optax.scale_by_lion(b1=config.b1, b2=config.b2)
        case "adafactor":
            # Unlike optax.adafactor, steps are not multiplied by the parameters' size. A block is a leaf in both.
            # Layers are stacked in one leaf, so the clipped RMS is over all layers.
            direction = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
        case "sgd":
            direction = optax.trace(decay=config.b1) if config.b1 else optax.identity()
    clip = optax.identity() if config.max_grad_norm is None else optax.clip_by_global_norm(config.max_grad_norm)
    decay = optax.add_decayed_weights(config.weight_decay, mask=decay_mask)
    return optax.chain(clip, direction, decay, optax.scale_by_learning_rate(schedule)), schedule


def _check_config(config: OptimConfig) -> None:
    """Raises for a number out of its range."""
    positive = dict.fromkeys(("learning_rate", "weight_decay", "eps", "warmup_steps"), (0.0, math.inf))
    shares = dict.fromkeys(("warmup_ratio", "final_fraction"), (0.0, 1.0))
    check_ranges(config, positive | shares, prefix="optim.")
    for name in ("b1", "b2"):
        if not 0 <= getattr(config, name) < 1:
            raise UserError(f"optim.{name} is {getattr(config, name)}. Give a number from 0 to below 1.")
    norm = config.max_grad_norm
    if norm is not None and not 0 < norm < math.inf:
        raise UserError(f"optim.max_grad_norm is {norm}. Give a number above 0, or null to turn clipping off.")
