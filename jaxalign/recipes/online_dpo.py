"""Online DPO: DPO on pairs of the policy's own answers, which a reward model or functions order."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

from jaxalign.errors import UserError
from jaxalign.methods.online_dpo import online_dpo
from jaxalign.models.model import Model
from jaxalign.models.params import Params
from jaxalign.recipes import config_file, online, steps
from jaxalign.recipes.config import refuse_arguments
from jaxalign.recipes.online_config import OnlineConfig, PenaltySection
from jaxalign.reporting import Report
from jaxalign.rewards import Reward
from jaxalign.settings import check_ranges


@dataclasses.dataclass(frozen=True)
class OnlineDpoSection:
    """The loss (Guo et al. 2024, arXiv:2402.04792).

    Args:
        beta: strength of the pull to the reference
        samples: answers to each prompt; the best and the worst make a pair
    """

    beta: float = 0.1
    samples: int = 2


@dataclasses.dataclass(frozen=True)
class Config(OnlineConfig):
    """Align a model with DPO on pairs of its own answers, the best and the worst by a reward model or functions.

    Rerun the same command to resume an interrupted run.

    Args:
        method: the loss
    """

    method: OnlineDpoSection = dataclasses.field(default_factory=OnlineDpoSection)


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
    """Aligns a model with DPO on the best and the worst of its own answers (see ``methods.online_dpo``).

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
    refuse_arguments("online_dpo", eval_rows=eval_rows, loss=loss, metrics=metrics)
    validate_config(config, rewards)
    run = steps.open_run(config, model=model, tokenizer=tokenizer, on_step=on_step, report=report)
    start = online.start_online(run, model=model, rows=rows, functions=rewards, num_completions=config.method.samples)
    with steps.open_checkpoints(run) as run:
        samples = online.record_start(run, start, rewards=rewards)
        reference = None if config.lora.rank else online.copy_reference(config.reference, start.params)
        policy = steps.make_trainable(config.lora, start.model, start.params, config.train.seed, copy=model is not None)
        method = build_method(run, policy)
        parts = online.compile_iteration(run, start, method, kl=PenaltySection(beta=0.0), reference=reference)
        del policy
        trained, lines = online.fit_online(run, method, parts)
    prompts = online.shown_prompts(run, start)
    return steps.finish(run, trained, lines, prompts=prompts, samples=samples)


def validate_config(config: Config, functions: Mapping[str, Reward] | None = None) -> None:
    """Raises UserError for settings that make no sense, before anything is read."""
    if config.train.max_update_kl is not None:
        raise UserError("train.max_update_kl is for the clipped losses of ppo and grpo. Leave it out.")
    check_ranges(config, {"method.samples": (2, math.inf), "method.beta": (1e-6, math.inf)})
    online.validate_online_config(config, functions)


def build_method(run: steps.Run, policy: steps.Trainable) -> online.TrainableMethod:
    """Returns the method of the configuration and the parameters that it trains."""
    method = online_dpo(policy.model, beta=run.config.method.beta, shape=online.score_shaping(run))
    return online.TrainableMethod(method, policy)
