"""Proximal policy optimisation: from a model, prompts and a reward to an aligned model."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxalign.keys import stream
from jaxalign.methods import ppo
from jaxalign.methods.reward import from_language_model
from jaxalign.models import lora
from jaxalign.models.model import Model
from jaxalign.models.params import Params, partition, union
from jaxalign.optim import OptimConfig
from jaxalign.recipes import config_file, online, steps
from jaxalign.recipes.config import refuse_arguments
from jaxalign.recipes.online_config import OnlineConfig, OnlineTrainSection, PenaltySection
from jaxalign.reporting import Report
from jaxalign.rewards import Reward
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

    Rerun the same command to resume an interrupted run.

    Args:
        kl: the KL penalty
        method: the loss
    """

    kl: PenaltySection = dataclasses.field(default_factory=PenaltySection)
    method: PpoSection = dataclasses.field(default_factory=PpoSection)
    optim: OptimConfig = dataclasses.field(default_factory=lambda: OptimConfig(learning_rate=3e-6))
    train: OnlineTrainSection = dataclasses.field(default_factory=lambda: OnlineTrainSection(epochs=2, minibatches=2))


load_config = functools.partial(config_file.load_config, Config)


def train(
    config: Config,
    *,
    model: tuple[Model, Params] | None = None,
    tokenizer: Any = None,
    rows: Any = None,
    eval_rows: None = None,
    loss: None = None,
    metrics: None = None,
    rewards: Mapping[str, Reward] | None = None,
    on_step: steps.OnStep | None = None,
    report: Report | None = None,
) -> steps.Result:
    """Aligns a model with PPO (see ``methods.ppo``).

    Args:
        config: The configuration. What is passed below replaces what it names.
        model: ``(model, params)``, the policy and its reference; the parameters are not changed.
        tokenizer: A ``transformers`` tokenizer.
        rows: Prompts: a list of dicts or a ``datasets.Dataset``.
        eval_rows: Does not apply.
        loss: Does not apply.
        metrics: Does not apply.
        rewards: Name → ``(prompts, completions, rows) -> scores``; ``reward.functions`` sets their weights.
        on_step: Called as ``on_step(iteration, state, metrics)`` after each iteration.
        report: Receives lines of text; None is silent.

    Raises:
        UserError: For settings, rows, rewards or a model that cannot be used.
    """
    refuse_arguments("ppo", eval_rows=eval_rows, loss=loss, metrics=metrics)
    validate_config(config, rewards)
    run = steps.open_run(config, model=model, tokenizer=tokenizer, on_step=on_step, report=report)
    start = online.start_online(run, model=model, rows=rows, functions=rewards, num_completions=1)
    with steps.open_checkpoints(run) as run:
        samples = online.record_start(run, start, rewards=rewards)
        reference = None if config.lora.rank else online.copy_reference(config.reference, start.params)
        policy = steps.make_trainable(config.lora, start.model, start.params, config.train.seed, copy=model is not None)
        method = build_method(run, policy)
        parts = online.compile_iteration(run, start, method, kl=config.kl, reference=reference)
        del policy
        trained, lines = online.fit_online(run, method, parts)
    prompts = online.shown_prompts(run, start)
    return steps.finish(run, trained, lines, prompts=prompts, samples=samples)


def validate_config(config: Config, functions: Mapping[str, Reward] | None = None) -> None:
    """Raises UserError for settings that make no sense, before anything is read."""
    ranges = {f"method.{name}": (0.0, 1.0) for name in ("gamma", "lam", "clip_low")}
    limits = {f"method.{name}": (0.0, math.inf) for name in ("clip_high", "value_clip", "value_coefficient")}
    check_ranges(config, {**ranges, **limits})
    online.validate_online_config(config, functions)


def build_method(run: steps.Run, policy: steps.Trainable) -> online.TrainableMethod:
    """Returns the method of the configuration. It trains a policy and a value model, under those names."""
    config, section = run.config, run.config.method
    value_model, value = make_value_model(run, policy)
    method = ppo.ppo(
        policy.model,
        value_model=value_model,
        shape=online.score_shaping(run),
        estimator=section.estimator,
        controller=online.kl_controller(config.kl),
        gamma=section.gamma,
        lam=section.lam,
        clip_low=section.clip_low,
        clip_high=section.clip_high,
        value_clip=section.value_clip,
        value_coefficient=section.value_coefficient,
    )
    fixed = None
    if policy.fixed is not None:
        fixed = {"policy": policy.fixed, **({} if value.fixed is None else {"value": value.fixed})}
    trainable = steps.Trainable(policy.model, {"policy": policy.trained, "value": value.trained}, fixed)
    roles = {"of trained: value model": online.size_of(value.trained)}
    return online.TrainableMethod(method, trainable, lambda params: params["policy"], roles)


def make_value_model(run: steps.Run, policy: steps.Trainable) -> tuple[Model | None, steps.Trainable]:
    """Returns the value model's trunk (None: a head on the policy's states) and its parameters."""
    if run.config.method.value == "head":
        return None, steps.Trainable(policy.model, ppo.value_head(policy.model), None)
    seed = run.config.train.seed
    # Copies: the step donates what is trained. The base of adapters serves both models.
    if policy.fixed is None:
        trunk = jax.tree.map(jnp.copy, policy.trained)
    else:
        trunk = lora.base_params(union(policy.trained, policy.fixed))
    model, params = from_language_model(lora.base_model(policy.model), trunk, stream(seed, "value model"))
    params = {**params, "score": jax.tree.map(jnp.zeros_like, params["score"])}
    if policy.fixed is None:
        return model, steps.Trainable(model, params, None)
    model = dataclasses.replace(model, lora=policy.model.lora)
    adapters = lora.init(model, stream(seed, "adapters of the value model"))
    return model, steps.Trainable(model, *partition(union(adapters, params), lora.is_trained))
