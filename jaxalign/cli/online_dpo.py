"""``jaxalign online_dpo``: DPO on pairs of the policy's own answers, which a reward model or functions make."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from jaxalign.cli import online
from jaxalign.cli.config import LoraSection, MeshSection, ModelSection, SamplesSection, check_ranges
from jaxalign.cli.online_config import (
    OnlineTrainSection,
    PromptSection,
    ReferenceSection,
    RolloutSection,
    ScoreSection,
)
from jaxalign.errors import UserError
from jaxalign.methods.online_dpo import online_dpo
from jaxalign.models.model import Model
from jaxalign.models.params import Params
from jaxalign.optim import OptimConfig
from jaxalign.tracking import LogConfig


@dataclasses.dataclass(frozen=True)
class OnlineDpoSection:
    """The loss (Guo et al. 2024, arXiv:2402.04792).

    Args:
        beta: how strongly the policy is held to the reference
        samples: answers to each prompt, of which the best and the worst make a pair
    """

    beta: float = 0.1
    samples: int = 2


@dataclasses.dataclass(frozen=True)
class Config:
    """Align a model with DPO on pairs of its own answers, the best and the worst by a reward model or functions.

    The same command goes on where an interrupted run stopped.

    Args:
        model: the policy; also the reference it starts from
        data: prompts
        output: directory for checkpoints, metrics and the trained model
        reward: what is rewarded
        rollout: how answers are sampled
        reference: how the reference is held
        method: the loss
        lora: train adapters in place of all parameters
        optim: the optimiser
        train: the loop
        mesh: devices
        log: dashboards
        samples: answers before and after
    """

    model: ModelSection
    data: PromptSection
    output: str
    reward: ScoreSection = dataclasses.field(default_factory=ScoreSection)
    rollout: RolloutSection = dataclasses.field(default_factory=RolloutSection)
    reference: ReferenceSection = dataclasses.field(default_factory=ReferenceSection)
    method: OnlineDpoSection = dataclasses.field(default_factory=OnlineDpoSection)
    lora: LoraSection = dataclasses.field(default_factory=LoraSection)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: OnlineTrainSection = dataclasses.field(default_factory=OnlineTrainSection)
    mesh: MeshSection = dataclasses.field(default_factory=MeshSection)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    samples: SamplesSection = dataclasses.field(default_factory=SamplesSection)


def run(config: Config) -> None:
    """The whole job."""
    if config.train.max_update_kl is not None:
        raise UserError("train.max_update_kl is for the clipped losses of ppo and grpo; leave it out.")
    check_ranges(config, {"method.samples": (2, math.inf), "method.beta": (1e-6, math.inf)})
    online.run(config, functools.partial(make, config), samples_each=config.method.samples)


def make(
    config: Config, model: Model, trained: Params, fixed: Params, shape: Callable[..., Any], controller: Any
) -> online.Parts:
    """The method of the configuration; the price of KL is the loss's own."""
    del controller
    return online.Parts(online_dpo(model, beta=config.method.beta, shape=shape), trained, fixed, pairs=True)
