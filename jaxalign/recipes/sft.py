"""Supervised fine-tuning: from a model and demonstrations to a fine-tuned model."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from jaxtyping import Array

from jaxalign import losses
from jaxalign.data.kinds import Demonstration
from jaxalign.methods.sft import sft
from jaxalign.models.model import Model
from jaxalign.models.open import check_language_model, check_trees
from jaxalign.models.params import Params
from jaxalign.optim import OptimConfig
from jaxalign.recipes import config_file, fit, steps
from jaxalign.recipes.budget import check_budget
from jaxalign.recipes.config import (
    SAMPLES_RANGES,
    TRAIN_RANGES,
    PolicyConfig,
    SftDataSection,
    check_best_metric,
    refuse_arguments,
)
from jaxalign.reporting import Report
from jaxalign.settings import check_ranges

LOSSES: Mapping[str, Callable[[Array], Array]] = {"nll": losses.nll, "dft": losses.dft}


@dataclasses.dataclass(frozen=True)
class SftSection:
    """The loss.

    Args:
        loss: nll, the negative log-likelihood, or dft, the same weighted by the likelihood (Wu et al. 2025,
            arXiv:2508.05629)
    """

    loss: Literal["nll", "dft"] = "nll"


@dataclasses.dataclass(frozen=True)
class Config(PolicyConfig):
    """Fine-tune a model on demonstrations.

    Rerun the same command to resume an interrupted run.

    Args:
        data: demonstrations
        method: the loss
    """

    data: SftDataSection = dataclasses.field(default_factory=SftDataSection)
    method: SftSection = dataclasses.field(default_factory=SftSection)
    optim: OptimConfig = dataclasses.field(default_factory=lambda: OptimConfig(learning_rate=2e-5))


load_config = functools.partial(config_file.load_config, Config)


def train(
    config: Config,
    *,
    model: tuple[Model, Params] | None = None,
    tokenizer: Any = None,
    rows: Any = None,
    eval_rows: Any = None,
    loss: None = None,
    metrics: Any = None,
    rewards: None = None,
    on_step: steps.OnStep | None = None,
    report: Report | None = None,
) -> steps.Result:
    """Fine-tunes a model on demonstrations (see ``methods.sft``).

    Args:
        config: The configuration. What is passed below replaces what it names.
        model: ``(model, params)``; the parameters are not changed.
        tokenizer: A ``transformers`` tokenizer.
        rows: Demonstrations: a list of dicts or a ``datasets.Dataset``.
        eval_rows: Demonstrations to evaluate on.
        loss: Does not apply.
        metrics: ``metrics(arrays) -> {name: (sum, count)}``; ``arrays`` has ``logps`` and ``mask`` [R, S].
        rewards: Does not apply.
        on_step: Called as ``on_step(step, state, metrics)`` after each step.
        report: Receives lines of text; None is silent.

    Raises:
        UserError: For settings, rows or a model that cannot be used.
    """
    refuse_arguments("sft", loss=loss, rewards=rewards)
    validate_config(config)
    run = steps.open_run(config, model=model, tokenizer=tokenizer, on_step=on_step, report=report)
    examples = fit.load_examples(run, Demonstration, rows, eval_rows)
    plan = fit.plan_steps(run, examples, "demonstrations")

    base, params = steps.open_starting_model(run, model)
    check_language_model(base, config.model.path or "The model")
    check_trees(base, [*examples.train, *examples.eval], config.data.max_length, "data.max_length")
    # Where whole texts are learned, a tree's prompt is only its first token: there is nothing to answer.
    prompts = fit.sample_prompts(run, examples.eval or examples.train) if config.data.loss_on == "assistant" else []
    with steps.open_checkpoints(run, evaluated=bool(examples.eval)) as run:
        steps.record_inputs(run, base, params, examples[:2], metrics=metrics)
        samples = steps.sample_before(run, base, params, prompts)
        policy = steps.make_trainable(config.lora, base, params, config.train.seed, copy=model is not None)
        method = sft(policy.model, loss=LOSSES[config.method.loss], **({"metrics": metrics} if metrics else {}))
        drawn = fit.make_batches(run, examples, plan)
        policy, lines = fit.fit(run, method, policy, plan, *drawn, notes=examples.counts, derive=with_perplexity)
    return steps.finish(run, policy, lines, prompts=prompts, samples=samples, num_eval=len(examples.eval))


def validate_config(config: Config) -> None:
    """Raises UserError for settings that make no sense, before anything is read."""
    check_ranges(config, {**TRAIN_RANGES, **SAMPLES_RANGES})
    check_best_metric(config.train.best, ("loss", "nll", "perplexity"))
    check_budget(config.budget)


def with_perplexity(metrics: dict[str, float]) -> dict[str, float]:
    """Adds e^nll to evaluation metrics. The nll is a mean over all tokens; a mean of perplexities would differ.

    >>> with_perplexity({"nll": 0.0})
    {'nll': 0.0, 'perplexity': 1.0}
    """
    return {**metrics, "perplexity": math.exp(min(metrics["nll"], 700.0))}  # beyond that a float overflows
