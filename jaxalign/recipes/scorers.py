"""Scorers of answers: functions of text, and a reward model of its own or as adapters on the policy's base."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign import rewards
from jaxalign.errors import UserError
from jaxalign.methods import rollouts
from jaxalign.methods.collect import Scorer, model_scorer, text_scorer
from jaxalign.models import lora
from jaxalign.models.model import Model
from jaxalign.models.open import open_model
from jaxalign.models.params import Params, union
from jaxalign.recipes.online_config import ScoreSection
from jaxalign.reporting import Report
from jaxalign.rewards import ensemble
from jaxalign.settings import ModelSection

HEADS = {"mean": ensemble.mean, "minimum": ensemble.minimum}


def make_scorers(
    reward: ScoreSection,
    functions: Mapping[str, rewards.Reward],
    tokenizer: Any,
    base: Model,
    params: Params,
    packing: rollouts.Packing,
    size: int,
    report: Report,
) -> tuple[dict[str, tuple[float, Scorer]], dict[str, int]]:
    """Makes the scorers of a run.

    Args:
        reward: The section of the configuration.
        functions: Reward functions by name; ``reward.functions`` has their weights.
        tokenizer: The policy's tokenizer.
        base: The policy's model.
        params: Its parameters.
        packing: How examples are packed into rows.
        size: Prompts of an iteration.
        report: Receives a line while the reward model loads.

    Returns:
        (name → (weight, scorer), bytes of the reward model that the policy does not share, by role).
    """
    scorers: dict[str, tuple[float, Scorer]] = {}
    roles: dict[str, int] = {}
    for name, function in functions.items():
        scorers[name] = (reward.functions or {})[name], text_scorer(function, tokenizer, name=name)
    if reward.path is not None or reward.adapter is not None:
        if reward.adapter is not None:
            model, weights, own = shared_reward_model(reward, base, params)
        else:
            model, weights, own = reward_model(reward, len(tokenizer), base.mesh, report)
        roles["reward model"] = size_of(own)
        heads = HEADS[reward.heads]
        scorers["model"] = reward.weight, model_scorer(model, weights, packing.batch, size=size, heads=heads)
    return scorers, roles


def reward_model(
    reward: ScoreSection, tokens: int, mesh: jax.sharding.Mesh, report: Report
) -> tuple[Model, Params, Params]:
    """Loads a reward model: the model, its parameters, and those not shared with the policy, which are all of them."""
    model, params = open_model(ModelSection(path=str(reward.path), dtype=reward.dtype), mesh, report)
    if not model.config.num_scores:
        raise UserError(f"reward.path {reward.path} is not a reward model. Train one with recipes.reward.")
    if model.config.vocab_size < tokens:
        raise UserError(
            f"The reward model {reward.path} knows {model.config.vocab_size} tokens, and the policy's tokenizer has "
            f"{tokens}. Give a reward model with the policy's tokenizer."
        )
    if reward.dtype == "bfloat16":
        params = to_bfloat16(params)
    if reward.hold == "host":
        params = jax.device_get(params)
    return model, params, params


def shared_reward_model(reward: ScoreSection, base: Model, params: Params) -> tuple[Model, Params, Params]:
    """Loads adapters and heads onto the policy's base. Only these are not shared with the policy."""
    model, own = lora.load(str(reward.adapter), dataclasses.replace(base, dtype=reward.dtype))
    if not model.config.num_scores:
        raise UserError(f"reward.adapter {reward.adapter} has no heads. Give the adapters of a reward model.")
    return model, union(own, {name: value for name, value in params.items() if name != "head"}), own


def to_bfloat16(params: Params) -> Params:
    """Returns the parameters in bfloat16."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)


def size_of(tree: Any) -> int:
    """Returns the bytes of a tree's arrays. An array that occurs twice (the base of two models) counts once."""
    return sum({id(leaf): leaf.nbytes for leaf in jax.tree.leaves(tree)}.values())
