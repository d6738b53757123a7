"""What answers are scored by: functions of text, and a reward model by itself or on the policy's base."""

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
    """(scorers by name with their weights, bytes of the reward model beyond the policy's own base and parameters)."""
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
    """(model, its parameters, those of them that are its own): all of them."""
    model, params = open_model(ModelSection(path=str(reward.path), dtype=reward.dtype), mesh, report)
    if not model.config.num_scores:
        raise UserError(f"reward.path {reward.path} is no reward model; train one with jaxalign reward.")
    if model.config.vocab_size < tokens:
        raise UserError(
            f"the reward model {reward.path} knows {model.config.vocab_size} tokens and the policy's tokenizer has "
            f"{tokens}; both must share one tokenizer."
        )
    if reward.dtype == "bfloat16":
        params = to_bfloat16(params)
    if reward.hold == "host":
        params = jax.device_get(params)
    return model, params, params


def shared_reward_model(reward: ScoreSection, base: Model, params: Params) -> tuple[Model, Params, Params]:
    """The same of adapters and heads on the policy's base: only they are its own."""
    model, own = lora.load(str(reward.adapter), dataclasses.replace(base, dtype=reward.dtype))
    if not model.config.num_scores:
        raise UserError(f"reward.adapter {reward.adapter} has no heads; give what jaxalign reward --lora.rank … wrote.")
    return model, union(own, {name: value for name, value in params.items() if name != "head"}), own


def to_bfloat16(params: Params) -> Params:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)


def size_of(tree: Any) -> int:
    """Bytes of the arrays of a tree; one that is there twice (the base of two models' adapters) counts once."""
    return sum({id(leaf): leaf.nbytes for leaf in jax.tree.leaves(tree)}.values())
