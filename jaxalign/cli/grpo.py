"""``jaxalign grpo``: policy gradients without a value model, from a model, prompts and a reward."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from jaxalign.cli import online
from jaxalign.methods import grpo
from jaxalign.methods.experience import Online
from jaxalign.models.model import Model
from jaxalign.models.params import Params
from jaxalign.recipes.online_config import OnlineConfig, PenaltySection
from jaxalign.settings import check_ranges

ALGORITHMS: Mapping[str, Callable[..., Online]] = {
    "grpo": grpo.grpo,
    "dr_grpo": grpo.dr_grpo,
    "dapo": grpo.dapo,
    "rloo": grpo.rloo,
    "reinforce_pp": grpo.reinforce_pp,
    "reinforce_pp_b": grpo.reinforce_pp_b,
    "gspo": grpo.gspo,
    "cispo": grpo.cispo,
}
WITHOUT_KL = ("dr_grpo", "dapo", "gspo", "cispo")


@dataclasses.dataclass(frozen=True)
class GrpoSection:
    """The method; see ``jaxalign.methods.grpo`` for what each of them is.

    Args:
        algorithm: which of them; dr_grpo, dapo, gspo and cispo have no KL, so kl and reference do nothing there
        samples: answers to each prompt
    """

    algorithm: Literal["grpo", "dr_grpo", "dapo", "rloo", "reinforce_pp", "reinforce_pp_b", "gspo", "cispo"] = "grpo"
    samples: int = 8


@dataclasses.dataclass(frozen=True)
class Config(OnlineConfig):
    """Align a model with GRPO or a relative, against a reward model or functions.

    The same command goes on where an interrupted run stopped.

    Args:
        kl: the price of leaving the reference
        method: the method
    """

    kl: PenaltySection = dataclasses.field(default_factory=lambda: PenaltySection(beta=0.04))
    method: GrpoSection = dataclasses.field(default_factory=GrpoSection)


def run(config: Config) -> None:
    """The whole job."""
    check_ranges(config, {"method.samples": (2, math.inf)})
    online.run(
        config,
        functools.partial(make, config),
        samples_each=config.method.samples,
        penalty=config.kl,
        referenced=config.method.algorithm not in WITHOUT_KL,
    )


def make(
    config: Config, model: Model, trained: Params, fixed: Params, shape: Callable[..., Any], controller: Any
) -> online.Parts:
    """The method of the configuration."""
    options: dict[str, Any] = {"shape": shape, "controller": controller}
    if config.method.algorithm == "dr_grpo":
        options["length"] = config.rollout.max_new_tokens
    return online.Parts(ALGORITHMS[config.method.algorithm](model, **options), trained, fixed)
