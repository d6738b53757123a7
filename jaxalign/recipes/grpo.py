"""GRPO and its relatives, policy gradients without a value model: from a model, prompts and a reward."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from jaxalign.methods import grpo
from jaxalign.methods.experience import OnlineMethod
from jaxalign.models.model import Model
from jaxalign.models.params import Params
from jaxalign.recipes import config_file, online, steps
from jaxalign.recipes.config import refuse_arguments
from jaxalign.recipes.online_config import OnlineConfig, PenaltySection
from jaxalign.reporting import Report
from jaxalign.rewards import Reward
from jaxalign.settings import check_ranges

ALGORITHMS: Mapping[str, Callable[..., OnlineMethod]] = {
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
    """The method. See ``jaxalign.methods.grpo`` for each of them.

    Args:
        algorithm: the method; dr_grpo, dapo, gspo and cispo have no KL, so kl and reference have no effect there
        samples: answers to each prompt
    """

    algorithm: Literal["grpo", "dr_grpo", "dapo", "rloo", "reinforce_pp", "reinforce_pp_b", "gspo", "cispo"] = "grpo"
    samples: int = 8


@dataclasses.dataclass(frozen=True)
class Config(OnlineConfig):
    """Align a model with GRPO or a relative, against a reward model or functions.

    Rerun the same command to resume an interrupted run.

    Args:
        kl: the KL penalty
        method: the method
    """

    kl: PenaltySection = dataclasses.field(default_factory=lambda: PenaltySection(beta=0.04))
    method: GrpoSection = dataclasses.field(default_factory=GrpoSection)


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
    """Aligns a model with GRPO or a relative (see ``methods.grpo``).

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
    refuse_arguments("grpo", eval_rows=eval_rows, loss=loss, metrics=metrics)
    validate_config(config, rewards)
    run = steps.open_run(config, model=model, tokenizer=tokenizer, on_step=on_step, report=report)
    start = online.start_online(run, model=model, rows=rows, functions=rewards, num_completions=config.method.samples)
    with steps.open_checkpoints(run) as run:
        samples = online.record_start(run, start, rewards=rewards)
        has_reference = config.method.algorithm not in WITHOUT_KL and not config.lora.rank
        reference = online.copy_reference(config.reference, start.params) if has_reference else None
        policy = steps.make_trainable(config.lora, start.model, start.params, config.train.seed, copy=model is not None)
        method = build_method(run, policy)
        parts = online.compile_iteration(run, start, method, kl=config.kl, reference=reference)
        del policy
        trained, lines = online.fit_online(run, method, parts)
    prompts = online.shown_prompts(run, start)
    return steps.finish(run, trained, lines, prompts=prompts, samples=samples)


def validate_config(config: Config, functions: Mapping[str, Reward] | None = None) -> None:
    """Raises UserError for settings that make no sense, before anything is read."""
    check_ranges(config, {"method.samples": (2, math.inf)})
    online.validate_online_config(config, functions)


def build_method(run: steps.Run, policy: steps.Trainable) -> online.TrainableMethod:
    """Returns the method of the configuration and the parameters that it trains."""
    config = run.config
    options: dict[str, Any] = {"shape": online.score_shaping(run), "controller": online.kl_controller(config.kl)}
    if config.method.algorithm == "dr_grpo":
        options["length"] = config.rollout.max_new_tokens
    return online.TrainableMethod(ALGORITHMS[config.method.algorithm](policy.model, **options), policy)
