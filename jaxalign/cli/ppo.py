"""``jaxalign ppo``: from a model, prompts and a reward to a trained model on disk."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxalign.cli import online
from jaxalign.keys import stream
from jaxalign.methods import ppo
from jaxalign.methods.reward import from_language_model
from jaxalign.models import lora as adapters
from jaxalign.models.model import Model
from jaxalign.models.params import Params, partition, union
from jaxalign.optim import OptimConfig
from jaxalign.recipes.online_config import OnlineConfig, OnlineTrainSection, PenaltySection
from jaxalign.settings import check_ranges


@dataclasses.dataclass(frozen=True)
class PpoSection:
    """The loss (Schulman et al. 2017, arXiv:1707.06347; Ouyang et al. 2022, arXiv:2203.02155).

    Args:
        value: a head on the policy's own states, or a trunk of its own, a copy of the policy's (with lora: with
            adapters of its own)
        estimator: of the KL in the rewards of tokens
        gamma: discount
        lam: of GAE
        clip_low: how far below 1 a ratio counts
        clip_high: how far above
        value_clip: how far a value may move to count
        value_coefficient: weight of the value loss
    """

    value: Literal["head", "trunk"] = "head"
    estimator: Literal["k1", "k2", "k3"] = "k1"
    gamma: float = 1.0
    lam: float = 0.95
    clip_low: float = 0.2
    clip_high: float = 0.2
    value_clip: float = 0.2
    value_coefficient: float = 0.1


@dataclasses.dataclass(frozen=True)
class Config(OnlineConfig):
    """Align a model with proximal policy optimisation, against a reward model or functions.

    The same command goes on where an interrupted run stopped.

    Args:
        kl: the price of leaving the reference
        method: the loss
    """

    kl: PenaltySection = dataclasses.field(default_factory=PenaltySection)
    method: PpoSection = dataclasses.field(default_factory=PpoSection)
    optim: OptimConfig = dataclasses.field(default_factory=lambda: OptimConfig(learning_rate=3e-6))
    train: OnlineTrainSection = dataclasses.field(default_factory=lambda: OnlineTrainSection(epochs=2, minibatches=2))


def run(config: Config) -> None:
    """The whole job."""
    ranges = {f"method.{name}": (0.0, 1.0) for name in ("gamma", "lam", "clip_low")}
    limits = {f"method.{name}": (0.0, math.inf) for name in ("clip_high", "value_clip", "value_coefficient")}
    check_ranges(config, {**ranges, **limits})
    online.run(config, functools.partial(make, config), samples_each=1, penalty=config.kl)


def make(
    config: Config, model: Model, trained: Params, fixed: Params, shape: Callable[..., Any], controller: Any
) -> online.Parts:
    """The method with its value model, all it trains under ``policy`` and ``value``."""
    method = config.method
    value_model, value, value_fixed = None, ppo.value_head(model), None
    if method.value == "trunk":
        # Copies: what is trained is given up to the step, and the base of adapters serves both.
        whole = jax.tree.map(jnp.copy, trained) if fixed is None else adapters.without(union(trained, fixed))
        value_model, whole = from_language_model(adapters.base(model), whole, stream(config.train.seed, "value model"))
        value = {**whole, "score": jax.tree.map(jnp.zeros_like, whole["score"])}
        if fixed is not None:
            value_model = dataclasses.replace(value_model, lora=model.lora)
            own = adapters.init(value_model, stream(config.train.seed, "adapters of the value model"))
            value, value_fixed = partition(union(own, value), adapters.is_trained)
    online_method = ppo.ppo(
        model,
        value_model=value_model,
        shape=shape,
        estimator=method.estimator,
        controller=controller,
        gamma=method.gamma,
        lam=method.lam,
        clip_low=method.clip_low,
        clip_high=method.clip_high,
        value_clip=method.value_clip,
        value_coefficient=method.value_coefficient,
    )
    rest = None if fixed is None else {"policy": fixed, **({} if value_fixed is None else {"value": value_fixed})}
    roles = {"of trained: value model": online.size_of(value)}
    return online.Parts(online_method, {"policy": trained, "value": value}, rest, lambda p: p["policy"], roles)
