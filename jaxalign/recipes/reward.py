"""Reward models: from a language model and comparisons to a reward model."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from jaxalign import loop
from jaxalign.data.batches import evaluation_batches
from jaxalign.data.kinds import Preference, Ranking, Record
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.judges.reliability import Calibration, calibration
from jaxalign.keys import stream
from jaxalign.methods import reward
from jaxalign.models.model import Model
from jaxalign.models.open import check_trees
from jaxalign.models.params import Params
from jaxalign.models.weights import own_padding
from jaxalign.optim import OptimConfig
from jaxalign.paths import write_whole
from jaxalign.recipes import config_file, fit, steps
from jaxalign.recipes.config import TRAIN_RANGES, TrainingConfig, check_best_metric, refuse_arguments
from jaxalign.reporting import Report
from jaxalign.settings import check_ranges

CALIBRATION = "calibration.json"
METRICS = {
    "pairs": ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "rewards/brier"),
    "rankings": ("loss", "rewards/mean", "rewards/concordance"),
}


@dataclasses.dataclass(frozen=True)
class RewardSection:
    """The loss.

    Args:
        learn: from pairs (Bradley-Terry), or from rankings of two or more (Plackett-Luce)
        heads: scores per completion; several are an ensemble, each head trained on a bootstrap sample of its own
        centering: coefficient of the penalty (r_chosen + r_rejected)², which keeps scores around 0 (pairs)
    """

    learn: Literal["pairs", "rankings"] = "pairs"
    heads: int = 1
    centering: float = 0.0


@dataclasses.dataclass(frozen=True)
class Config(TrainingConfig):
    """Train a reward model on preference pairs or rankings.

    Rerun the same command to resume an interrupted run.

    Args:
        model: the trunk: a language model, best the fine-tuned one; or a reward model, to train it further
        data: comparisons
        method: the loss
        lora: train adapters and the heads in place of all parameters
    """

    method: RewardSection = dataclasses.field(default_factory=RewardSection)
    optim: OptimConfig = dataclasses.field(default_factory=lambda: OptimConfig(learning_rate=1e-5))


load_config = functools.partial(config_file.load_config, Config)


def train(
    config: Config,
    *,
    model: tuple[Model, Params] | None = None,
    tokenizer: Any = None,
    rows: Any = None,
    eval_rows: Any = None,
    loss: None = None,
    metrics: Callable[..., Any] | None = None,
    rewards: None = None,
    on_step: steps.OnStep | None = None,
    report: Report | None = None,
) -> steps.Result:
    """Trains a reward model on pairs or rankings (see ``methods.reward``).

    Args:
        config: The configuration. What is passed below replaces what it names.
        model: ``(model, params)`` of a language model or a reward model; the parameters are not changed.
        tokenizer: A ``transformers`` tokenizer.
        rows: Comparisons: a list of dicts or a ``datasets.Dataset``.
        eval_rows: Comparisons to evaluate on.
        loss: Does not apply.
        metrics: ``metrics(arrays) -> {name: (sum, count)}``; ``arrays`` maps the loss's arguments to arrays.
        rewards: Does not apply.
        on_step: Called as ``on_step(step, state, metrics)`` after each step.
        report: Receives lines of text; None is silent.

    Raises:
        UserError: For settings, rows or a model that cannot be used.
    """
    refuse_arguments("reward", loss=loss, rewards=rewards)
    validate_config(config)
    run = steps.open_run(config, model=model, tokenizer=tokenizer, on_step=on_step, report=report)
    kind: type[Record] = Preference if config.method.learn == "pairs" else Ranking
    examples = fit.load_examples(run, kind, rows, eval_rows)
    plan = fit.plan_steps(run, examples, config.method.learn)

    trunk, trunk_params = steps.open_starting_model(run, model)
    check_trees(trunk, [*examples.train, *examples.eval], config.data.max_length, "data.max_length")
    own_padding(trunk.config, run.tokenizer)  # raises now, and not when the trained model is saved
    scorer, params = with_heads(config, trunk, trunk_params)
    with steps.open_checkpoints(run, evaluated=bool(examples.eval)) as run:
        steps.record_inputs(run, scorer, trunk_params, examples[:2], metrics=metrics)
        policy = steps.make_trainable(config.lora, scorer, params, config.train.seed, copy=model is not None)
        method, drawn = build_method(config, policy.model, metrics), fit.make_batches(run, examples, plan)
        policy, lines = fit.fit(run, method, policy, plan, *drawn, notes=examples.counts)
    result = steps.finish(run, policy, lines, num_eval=len(examples.eval))
    if not examples.eval or config.method.learn != "pairs":
        return result
    figures = measure_calibration(run, result.model, result.params, examples.eval, plan)
    return dataclasses.replace(result, after={**result.after, **figures})


def validate_config(config: Config) -> None:
    """Raises UserError for settings that make no sense, before anything is read."""
    check_ranges(config, {**TRAIN_RANGES, "method.heads": (1, math.inf), "method.centering": (0, math.inf)})
    if config.method.centering and config.method.learn == "rankings":
        raise UserError("method.centering is for pairs. Leave it at 0 for rankings.")
    check_best_metric(config.train.best, METRICS[config.method.learn])


def with_heads(config: Config, model: Model, params: Params) -> tuple[Model, Params]:
    """Returns a reward model: fresh heads on a language model's trunk, or the reward model that was given.

    Raises:
        UserError: If a reward model has another number of heads than ``method.heads``.
    """
    if not model.config.num_scores:
        key = stream(config.train.seed, "heads")
        return reward.from_language_model(model, params, key, heads=config.method.heads)
    if model.config.num_scores != config.method.heads:
        raise UserError(f"method.heads is {config.method.heads}, but the reward model has {model.config.num_scores}.")
    return model, params


def build_method(config: Config, model: Model, metrics: Callable[..., Any] | None = None) -> loop.Method:
    """Returns the method of a configuration."""
    section, seed = config.method, config.train.seed
    options: dict[str, Any] = {"metrics": metrics} if metrics is not None else {}
    if section.learn == "pairs":
        return reward.pairs(model, centering=section.centering, bootstrap_seed=seed, **options)
    return reward.rankings(model, bootstrap_seed=seed, **options)


def measure_calibration(
    run: steps.Run, model: Model, params: Params, trees: Sequence[Tree], plan: fit.Plan
) -> dict[str, Any]:
    """Measures whether σ(r_a - r_b) of held-out pairs is the frequency with which a is preferred.

    The chosen answer is a in every other pair, so that its place does not reveal it. The figures are reported, and
    written to calibration.json; there are none if the scores are not finite.
    """
    on_mesh = loop.OnMesh(evaluation_batches(trees, **plan.options), model.mesh)
    scores = reward.completion_scores(model, params, on_mesh).astype(np.float64).mean(-1)  # of the heads
    if not np.all(np.isfinite(scores)):
        run.report("The scores are not finite: the run diverged. Lower optim.learning_rate.")
        return {}
    first = np.arange(len(trees)) % 2
    margin = np.where(first == 0, scores[:, 0] - scores[:, 1], scores[:, 1] - scores[:, 0])
    result = calibration((1 / (1 + np.exp(-margin))).tolist(), 1 - first)
    (low, high), (brier_low, brier_high) = result.ece_ci, result.brier_ci
    run.report(
        f"expected calibration error {result.ece:.3f} [{low:.3f}, {high:.3f}] "
        f"(a perfectly calibrated model would stay below {result.ece_by_luck:.3f}), "
        f"Brier score {result.brier:.3f} [{brier_low:.3f}, {brier_high:.3f}]"
    )
    content = describe_calibration(result)
    if run.directory is not None:
        write_whole(run.directory / CALIBRATION, json.dumps(content, indent=2, allow_nan=False) + "\n")
    return {f"eval/{name}": value for name, value in content.items()}


def describe_calibration(result: Calibration) -> dict[str, Any]:
    """Returns a calibration as plain values, without empty bins."""
    bins = [entry._asdict() for entry in result.bins if entry.size]
    return {**{field.name: getattr(result, field.name) for field in dataclasses.fields(result)}, "bins": bins}
