"""KTO and its relatives: from a model and answers that were liked or not to an aligned model."""

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
from jaxalign.data.kinds import UnpairedPreference
from jaxalign.data.mismatched import Mismatched
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.methods import kto
from jaxalign.methods.dpo import implicit_rewards
from jaxalign.models.model import Model
from jaxalign.models.open import check_language_model, check_trees
from jaxalign.models.params import Params, union
from jaxalign.paths import write_whole
from jaxalign.recipes import config_file, fit, steps
from jaxalign.recipes.budget import check_budget
from jaxalign.recipes.config import (
    SAMPLES_RANGES,
    TRAIN_RANGES,
    KtoDataSection,
    PolicyConfig,
    check_best_metric,
    refuse_arguments,
)
from jaxalign.recipes.reference import with_reference
from jaxalign.reporting import Report
from jaxalign.settings import check_ranges
from jaxalign.stats import Separation, separation

SEPARATION = "separation.json"
METHODS: dict[str, Callable[..., loop.Method]] = {
    "kto": kto.kto,
    "bco": kto.bco,
    "apo_zero_unpaired": kto.apo_zero_unpaired,
}
# The metric of each loss's baseline.
BASELINES = {"kto": ("kl",), "bco": ("delta",), "apo_zero_unpaired": ()}
METRICS = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected")


@dataclasses.dataclass(frozen=True)
class KtoSection:
    """The loss.

    Args:
        loss: kto (Ethayarajh et al. 2024, arXiv:2402.01306), bco (Jung et al. 2024, arXiv:2404.04656) or
            apo_zero_unpaired (D'Oosterlinck et al. 2024, arXiv:2408.06266)
        beta: strength of the pull to the reference
        desirable_weight: of answers that were liked; null, with undesirable_weight null, balances the two kinds by
            their counts
        undesirable_weight: of the other answers
        reference: live computes the reference's log-probs in every step, from a second copy of the parameters, or with
            lora from the base itself; cached computes those of the examples once, before training (kto also needs the
            reference itself for its baseline)
    """

    loss: Literal["kto", "bco", "apo_zero_unpaired"] = "kto"
    beta: float = 0.1
    desirable_weight: float | None = None
    undesirable_weight: float | None = None
    reference: Literal["cached", "live"] = "live"


@dataclasses.dataclass(frozen=True)
class Config(PolicyConfig):
    """Align a model on single answers that were liked or not: thumbs, votes, ratings, or pairs split into two answers.

    Rerun the same command to resume an interrupted run.

    Args:
        model: the policy, which is also the reference it starts from; fine-tuned before or not
        data: labelled answers
        method: the loss
    """

    data: KtoDataSection = dataclasses.field(default_factory=KtoDataSection)
    method: KtoSection = dataclasses.field(default_factory=KtoSection)


load_config = functools.partial(config_file.load_config, Config)


def train(
    config: Config,
    *,
    model: tuple[Model, Params] | None = None,
    tokenizer: Any = None,
    rows: Any = None,
    eval_rows: Any = None,
    loss: Callable[..., Any] | None = None,
    metrics: Callable[..., Any] | None = None,
    rewards: None = None,
    on_step: steps.OnStep | None = None,
    report: Report | None = None,
) -> steps.Result:
    """Aligns a model on single answers that were liked or not (see ``methods.kto``).

    Args:
        config: The configuration. What is passed below replaces what it names.
        model: ``(model, params)``, the policy and its reference; the parameters are not changed.
        tokenizer: A ``transformers`` tokenizer.
        rows: Labelled answers: a list of dicts or a ``datasets.Dataset``.
        eval_rows: Answers to evaluate on.
        loss: ``loss(policy_logps, reference_logps, desirable, kl) -> [B]`` of summed log-probs in nats.
        metrics: ``metrics(arrays) -> {name: (sum, count)}``; ``arrays`` maps the loss's arguments to arrays.
        rewards: Does not apply.
        on_step: Called as ``on_step(step, state, metrics)`` after each step.
        report: Receives lines of text; None is silent.

    Raises:
        UserError: For settings, rows or a model that cannot be used.
    """
    refuse_arguments("kto", rewards=rewards)
    validate_config(config)
    run = steps.open_run(config, model=model, tokenizer=tokenizer, on_step=on_step, report=report)
    section, seed = config.method, config.train.seed
    examples = fit.load_examples(run, UnpairedPreference, rows, eval_rows)
    weights = class_weights(section, examples.train)
    run.report(describe_classes(examples.train, weights))
    plan = fit.plan_steps(run, examples, "answers")
    drawn = make_kto_batches(run, examples, plan)  # refuses a single prompt before the work

    reference, params = steps.open_starting_model(run, model)
    check_language_model(reference, config.model.path or "The model")
    check_trees(reference, [*examples.train, *examples.eval], config.data.max_length, "data.max_length")
    prompts = fit.sample_prompts(run, first_of_each_prompt(examples.eval or examples.train))
    with steps.open_checkpoints(run, evaluated=bool(examples.eval)) as run:
        steps.record_inputs(run, reference, params, examples[:2], loss=loss, metrics=metrics)
        samples = steps.sample_before(run, reference, params, prompts)
        if section.reference == "cached":
            examples = with_reference(run, reference, params, examples, plan)
            drawn = make_kto_batches(run, examples, plan)
        needs_reference = section.reference == "live" or section.loss == "kto"
        # The step donates what is trained: a copy, if the original is the reference or belongs to the caller.
        policy = steps.make_trainable(config.lora, reference, params, seed, copy=needs_reference or model is not None)
        frozen = params if needs_reference and policy.fixed is None else None
        method, notes = build_method(section, policy.model, weights, loss, metrics), examples.counts
        policy, lines = fit.fit(run, method, policy, plan, *drawn, frozen=frozen, notes=notes, derive=with_margins)
    figures = measure_separation(run, policy, examples.eval, plan, frozen) if examples.eval else {}
    count = len(examples.eval)
    return steps.finish(run, policy, lines, prompts=prompts, samples=samples, num_eval=count, figures=figures)


def validate_config(config: Config) -> None:
    """Raises UserError for settings that make no sense, before anything is read."""
    check_budget(config.budget)
    weights = dict.fromkeys(("method.desirable_weight", "method.undesirable_weight"), (0.0, math.inf))
    check_ranges(config, {**TRAIN_RANGES, **SAMPLES_RANGES, "method.beta": (1e-6, math.inf), **weights})
    if (config.method.desirable_weight is None) != (config.method.undesirable_weight is None):
        raise UserError(
            "Only one of method.desirable_weight and method.undesirable_weight is set. Set both, or neither (class "
            "counts then set them)."
        )
    check_best_metric(config.train.best, METRICS + BASELINES[config.method.loss])


def build_method(
    section: KtoSection,
    model: Model,
    weights: tuple[float, float],
    loss: Callable[..., Any] | None = None,
    metrics: Callable[..., Any] | None = None,
) -> loop.Method:
    """Returns the method of a configuration, or that of a loss function."""
    options: dict[str, Any] = {name: value for name, value in (("loss", loss), ("metrics", metrics)) if value}
    desirable, undesirable = weights
    method = METHODS["kto" if loss is not None else section.loss]
    return method(model, beta=section.beta, desirable_weight=desirable, undesirable_weight=undesirable, **options)


def class_weights(section: KtoSection, trees: Sequence[Tree]) -> tuple[float, float]:
    """Returns the weights of liked and of other answers: those that are set, or those that balance the counts.

    Raises:
        UserError: If all training examples are of one kind.
    """
    liked = sum(bool(tree.extras["label"][0]) for tree in trees)
    if liked in (0, len(trees)):
        kind = "liked" if liked else "not liked"
        raise UserError(f"All {len(trees)} training examples are {kind}. Give answers of both kinds, or use sft.")
    if section.desirable_weight is None or section.undesirable_weight is None:
        return kto.balanced_weights(liked, len(trees) - liked)
    return section.desirable_weight, section.undesirable_weight


def describe_classes(trees: Sequence[Tree], weights: tuple[float, float]) -> str:
    """Describes the counts and weights of the two kinds of answers.

    >>> describe_classes([Tree.of([1], [[2]], label=True), Tree.of([1], [[3]], label=False)], (1.0, 1.0))
    '1 answers liked and 1 not, weighted 1 and 1: a ratio of 1.00 (1 to 1.33 is advised)'
    """
    liked = sum(bool(tree.extras["label"][0]) for tree in trees)
    others = len(trees) - liked
    ratio = weights[0] * liked / (weights[1] * others) if weights[1] else math.inf
    return (
        f"{liked} answers liked and {others} not, weighted {weights[0]:.4g} and {weights[1]:.4g}: "
        f"a ratio of {ratio:.2f} (1 to 1.33 is advised)"
    )


def make_kto_batches(run: steps.Run, examples: fit.Examples, plan: fit.Plan) -> tuple[Any, Any]:
    """Returns training and evaluation batches; for kto each has completions of other prompts for its baseline.

    Raises:
        UserError: If kto has only one prompt.
    """
    train_batches, eval_batches = fit.make_batches(run, examples, plan)
    if run.config.method.loss != "kto":
        return train_batches, eval_batches
    if len({tree.prompt_key for tree in examples.train}) < 2:
        raise UserError(
            "All training examples share one prompt, and KTO's baseline needs completions of other prompts. Give more "
            "prompts, or set method.loss to bco or apo_zero_unpaired."
        )
    seed = run.config.train.seed
    # Evaluation examples are matched among each other, if they have several prompts.
    pool = examples.eval if len({tree.prompt_key for tree in examples.eval}) > 1 else examples.train
    if eval_batches is not None:
        eval_batches = Mismatched(eval_batches, examples.eval, pool, seed, by_step=False)
    return Mismatched(train_batches, examples.train, examples.train, seed), eval_batches


def first_of_each_prompt(trees: Sequence[Tree]) -> list[Tree]:
    """Returns one tree of every prompt, in order."""
    return list({tree.prompt_key: tree for tree in reversed(trees)}.values())[::-1]


def with_margins(metrics: dict[str, float]) -> dict[str, float]:
    """Adds the difference of the two kinds' mean rewards to evaluation metrics.

    >>> with_margins({"rewards/chosen": 1.0, "rewards/rejected": -0.5})["rewards/margins"]
    1.5
    """
    return {**metrics, "rewards/margins": metrics["rewards/chosen"] - metrics["rewards/rejected"]}


def measure_separation(
    run: steps.Run, policy: steps.Trainable, trees: Sequence[Tree], plan: fit.Plan, frozen: Any
) -> dict[str, Any]:
    """Measures how well implicit rewards, and lengths alone, separate liked from other answers (AUC).

    The figures are reported, and written to separation.json if both kinds are there. Before training all implicit
    rewards are 0, so the AUC is 0.5.
    """
    on_mesh = loop.OnMesh(evaluation_batches(trees, **plan.options), policy.model.mesh)
    params = union(policy.trained, policy.fixed)
    rewards = implicit_rewards(policy.model, params, on_mesh, beta=run.config.method.beta, frozen=frozen)
    labels, keys = [bool(tree.extras["label"][0]) for tree in trees], [tree.prompt_key for tree in trees]
    by_reward = separation(rewards[:, 0].astype(np.float64).tolist(), labels, keys)
    by_length = separation([float(tree.num_targets) for tree in trees], labels, keys)
    run.report(describe_separation(by_reward, by_length))
    if not (by_reward.liked and by_reward.others):
        return {}
    if run.directory is not None:
        content = dataclasses.asdict(by_reward)
        content |= {"length_auc": by_length.auc, "length_auc_ci": by_length.auc_ci}
        write_whole(run.directory / SEPARATION, json.dumps(content, indent=2) + "\n")
    return {
        "eval/auc": by_reward.auc,
        "eval/auc_ci": by_reward.auc_ci,
        "eval/length_auc": by_length.auc,
        "eval/length_auc_ci": by_length.auc_ci,
    }


def describe_separation(by_reward: Separation, by_length: Separation) -> str:
    """Describes the separation of held-out answers in one line."""
    if not (by_reward.liked and by_reward.others):
        kind = "liked" if by_reward.liked else "not liked"
        return f"held-out answers: all {by_reward.liked + by_reward.others} are {kind}, so the AUC is undefined"
    (low, high), (short, long) = by_reward.auc_ci, by_length.auc_ci
    return (
        f"held-out answers: a liked one has a higher implicit reward than another one with probability "
        f"{by_reward.auc:.3f} [{low:.3f}, {high:.3f}] (AUC; {by_reward.liked} liked, {by_reward.others} not, of "
        f"{by_reward.prompts} prompts; 0.5 before training; by length alone {by_length.auc:.3f} "
        f"[{short:.3f}, {long:.3f}])"
    )
