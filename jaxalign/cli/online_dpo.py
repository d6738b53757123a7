"""``jaxalign online_dpo``: DPO on pairs of the policy's own answers, which a reward model or functions make."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from jaxalign.cli import online
from jaxalign.errors import UserError
from jaxalign.methods.online_dpo import online_dpo
from jaxalign.models.model import Model
from jaxalign.models.params import Params
from jaxalign.recipes.online_config import OnlineConfig
from jaxalign.settings import check_ranges


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
class Config(OnlineConfig):
    """Align a model with DPO on pairs of its own answers, the best and the worst by a reward model or functions.

    The same command goes on where an interrupted run stopped.

    Args:
        method: the loss
    """

    method: OnlineDpoSection = dataclasses.field(default_factory=OnlineDpoSection)


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
