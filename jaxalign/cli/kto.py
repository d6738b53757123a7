"""``jaxalign kto``: from a model and answers that were liked or not to a trained model on disk."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import loop, optim
from jaxalign.data.batches import Batches, evaluation_batches
from jaxalign.data.mismatched import Mismatched
from jaxalign.data.records import UnpairedPreference
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.methods import kto
from jaxalign.methods.dpo import implicit_rewards
from jaxalign.models.model import Model
from jaxalign.models.open import check_trees, open_model
from jaxalign.models.params import union
from jaxalign.models.tokenizer import load_tokenizer
from jaxalign.optim import OptimConfig
from jaxalign.paths import write_whole
from jaxalign.recipes import fit as training
from jaxalign.recipes import run_directory as runs
from jaxalign.recipes.budget import BudgetSection
from jaxalign.recipes.budget import check as check_budget
from jaxalign.recipes.config import TRAIN_RANGES, KtoDataSection, LoraSection, SamplesSection, TrainSection, check_best
from jaxalign.recipes.examples import batch_options, make_trees, read_examples
from jaxalign.recipes.reference import with_reference
from jaxalign.settings import MeshSection, ModelSection, check_ranges
from jaxalign.stats import Separation, separation
from jaxalign.tracking import LogConfig

SEPARATION = "separation.json"
METHODS = {"kto": kto.kto, "bco": kto.bco, "apo_zero_unpaired": kto.apo_zero_unpaired}
BASELINES = {"kto": ("kl",), "bco": ("delta",), "apo_zero_unpaired": ()}  # the metric of each
MEASURED = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected")


@dataclasses.dataclass(frozen=True)
class KtoSection:
    """The loss.

    Args:
        loss: kto (Ethayarajh et al. 2024, arXiv:2402.01306), bco (Jung et al. 2024, arXiv:2404.04656) or
            apo_zero_unpaired (D'Oosterlinck et al. 2024, arXiv:2408.06266)
        beta: how strongly the policy is held to the reference
        desirable_weight: of answers that were liked; null, with undesirable_weight null, balances the two kinds by
            their counts
        undesirable_weight: of the other answers
        reference: live computes the reference's log-probs in every step, from a second copy of the parameters, or with
            lora from the base itself; cached computes those of the examples once, before training (kto needs the
            reference for its baseline beside them)
    """

    loss: Literal["kto", "bco", "apo_zero_unpaired"] = "kto"
    beta: float = 0.1
    desirable_weight: float | None = None
    undesirable_weight: float | None = None
    reference: Literal["cached", "live"] = "live"


@dataclasses.dataclass(frozen=True)
class Config:
    """Align a model on answers that were liked or not, each by itself: thumbs, votes, ratings, or pairs taken apart.

    The same command goes on where an interrupted run stopped.

    Args:
        model: the policy, which is also the reference it starts from; fine-tuned before or not
        data: labelled answers
        output: directory for checkpoints, metrics and the trained model
        method: the loss
        lora: train adapters in place of all parameters
        optim: the optimiser
        train: the loop
        mesh: devices
        log: dashboards
        samples: answers before and after
        budget: what training may cost of capabilities
    """

    model: ModelSection
    data: KtoDataSection
    output: str
    method: KtoSection = dataclasses.field(default_factory=KtoSection)
    lora: LoraSection = dataclasses.field(default_factory=LoraSection)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainSection = dataclasses.field(default_factory=TrainSection)
    mesh: MeshSection = dataclasses.field(default_factory=MeshSection)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    samples: SamplesSection = dataclasses.field(default_factory=SamplesSection)
    budget: BudgetSection = dataclasses.field(default_factory=BudgetSection)


def run(config: Config) -> None:
    """The whole job. What can be wrong is found before anything is written."""
    check(config)
    job = training.start(config)
    console, mesh, section, seed = job.console, job.mesh, config.method, config.train.seed

    tokenizer = load_tokenizer(config.model.path)
    records, held_records = read_examples(UnpairedPreference, config.data, seed, console)
    trees, cut = make_trees(records, tokenizer, config.data, "training", console)
    held, cut_held = make_trees(held_records, tokenizer, config.data, "held out", console)
    weights = class_weights(section, trees)
    console.print(tell_classes(trees, weights))
    options, steps = batch_options(trees, held, config.train, mesh.shape["data"] * mesh.shape["fsdp"])
    optimizer, schedule = optim.make_optimizer(config.optim, steps)
    arrange = with_mismatched(trees, held, seed) if section.loss == "kto" else None

    reference, params = open_model(config.model, mesh, lambda line: console.print(line, markup=False))
    check_trees(reference, [*trees, *held], config.data.max_length, "data.max_length")
    training.announce(job, steps, options, "answers")

    with training.checkpoints(job, evaluated=bool(held)) as kept:
        resuming = kept.latest_step() is not None
        training.begin(job, reference.config, params, tokenizer, (trees, held), resuming=resuming)
        prompts = [tree.prompt for tree in first_of_each_prompt(held or trees)[: config.samples.prompts]]
        answered = training.answers_before(job, reference, params, tokenizer, prompts, resuming=resuming)
        if section.reference == "cached":
            trees, held = with_reference(
                job.output / runs.REFERENCE,
                reference,
                params,
                trees,
                held,
                options=options,
                steps=steps,
                seed=seed,
                resuming=resuming,
                console=console,
            )
        model, params, fixed = training.trainable(config.lora, reference, params, seed)
        frozen = None
        if fixed is None and (section.reference == "live" or section.loss == "kto"):
            frozen = jax.tree.map(jnp.copy, params)  # the step reuses the buffers of the original
        method = METHODS[section.loss](
            model, beta=section.beta, desirable_weight=weights[0], undesirable_weight=weights[1]
        )
        params = training.fit(
            job,
            method,
            params,
            optimizer,
            trees=trees,
            held=held,
            counts=cut | cut_held,
            options=options,
            steps=steps,
            kept=kept,
            schedule=schedule,
            frozen=frozen,
            fixed=fixed,
            method_state=kto.bco_state() if section.loss == "bco" else (),
            arrange=arrange,
            measure=with_margins,
            subject=(model, tokenizer),
        )

    if held:
        found = separate(model, union(params, fixed), held, options, beta=section.beta, frozen=frozen)
        tell_separation(job, found, by_length(held))
    model, params = training.save(job, model, params, fixed, tokenizer)
    answered["after"] = training.sample(job, model, params, tokenizer, prompts)
    runs.write_samples(job.output, answered)
    training.report(job, held=len(held), answered=answered)


def check(config: Config) -> None:
    """Raise for settings that make no sense, before anything is read."""
    check_budget(config.budget)
    positive = (1e-6, math.inf)
    weights = ("method.desirable_weight", "method.undesirable_weight")
    check_ranges(config, {**TRAIN_RANGES, "method.beta": positive, **dict.fromkeys(weights, (0.0, math.inf))})
    if (config.method.desirable_weight is None) != (config.method.undesirable_weight is None):
        raise UserError(
            "of method.desirable_weight and method.undesirable_weight one is given: give both, or neither to have them "
            "balance the counts."
        )
    check_best(config.train.best, MEASURED + BASELINES[config.method.loss])


def class_weights(section: KtoSection, trees: Sequence[Tree]) -> tuple[float, float]:
    """The weights of liked and of other answers: those given, or those that balance the counts.

    Raises:
        UserError: if all training examples are of one kind.
    """
    liked = sum(bool(tree.extras["label"][0]) for tree in trees)
    if liked in (0, len(trees)):
        kind = "liked" if liked else "not liked"
        raise UserError(
            f"all {len(trees)} training examples are {kind}: give answers of both kinds, or use jaxalign sft"
        )
    if section.desirable_weight is None or section.undesirable_weight is None:
        return kto.balanced_weights(liked, len(trees) - liked)
    return section.desirable_weight, section.undesirable_weight


def tell_classes(trees: Sequence[Tree], weights: tuple[float, float]) -> str:
    """A line about the two kinds and how they are weighed.

    >>> tell_classes([Tree.of([1], [[2]], label=True), Tree.of([1], [[3]], label=False)], (1.0, 1.0))
    '1 answers liked and 1 not, weighed 1 and 1: a ratio of 1.00 (1 to 1.33 is advised)'
    """
    liked = sum(bool(tree.extras["label"][0]) for tree in trees)
    others = len(trees) - liked
    ratio = weights[0] * liked / (weights[1] * others) if weights[1] else math.inf
    return (
        f"{liked} answers liked and {others} not, weighed {weights[0]:.4g} and {weights[1]:.4g}: "
        f"a ratio of {ratio:.2f} (1 to 1.33 is advised)"
    )


def with_mismatched(trees: Sequence[Tree], held: Sequence[Tree], seed: int) -> training.Arrange:
    """Completions of other prompts beside batches; held-out ones keep to themselves if they have several prompts.

    Raises:
        UserError: if there is one prompt only.
    """
    pool = held if len({tree.prompt_key for tree in held}) > 1 else trees
    if len({tree.prompt_key for tree in trees}) < 2:
        raise UserError(
            "all training examples share one prompt, and KTO's baseline needs completions of other prompts: give more "
            "prompts, or set method.loss to bco or apo_zero_unpaired"
        )

    def arrange(drawn: Batches, evaluated: bool) -> Mismatched:
        if evaluated:
            return Mismatched(drawn, held, pool, seed, by_step=False)
        return Mismatched(drawn, trees, trees, seed)

    return arrange


def first_of_each_prompt(trees: Sequence[Tree]) -> list[Tree]:
    """One tree of every prompt, in order."""
    return list({tree.prompt_key: tree for tree in reversed(trees)}.values())[::-1]


def with_margins(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics and the difference of the two kinds' mean rewards.

    >>> with_margins({"rewards/chosen": 1.0, "rewards/rejected": -0.5})["rewards/margins"]
    1.5
    """
    return {**metrics, "rewards/margins": metrics["rewards/chosen"] - metrics["rewards/rejected"]}


def separate(
    model: Model, params: Any, held: Sequence[Tree], options: dict[str, Any], *, beta: float, frozen: Any
) -> Separation:
    """How well the implicit rewards tell the held-out answers apart. (Before training they are all 0: 0.5.)"""
    feed = loop.OnMesh(evaluation_batches(held, **options), model.mesh)
    rewards = implicit_rewards(model, params, feed, beta=beta, frozen=frozen)[:, 0].astype(np.float64)
    labels = [bool(tree.extras["label"][0]) for tree in held]
    return separation(rewards.tolist(), labels, [tree.prompt_key for tree in held])


def by_length(held: Sequence[Tree]) -> Separation:
    """How well their lengths in tokens alone tell the answers apart: what implicit rewards may owe to length."""
    labels = [bool(tree.extras["label"][0]) for tree in held]
    return separation([float(tree.num_targets) for tree in held], labels, [tree.prompt_key for tree in held])


def tell_separation(job: training.Run, found: Separation, length: Separation) -> None:
    """A line about it, and the same in a file; only the line where there is one kind of answers."""
    if not (found.liked and found.others):
        kind = "liked" if found.liked else "not liked"
        job.console.print(f"held-out answers: all {found.liked + found.others} are {kind}, so none can be told apart")
        return
    (low, high), (short, long) = found.auc_ci, length.auc_ci
    job.console.print(
        f"held-out answers: a liked one has a higher implicit reward than another one with probability "
        f"{found.auc:.3f} [{low:.3f}, {high:.3f}] (AUC; {found.liked} liked, {found.others} not, of {found.prompts} "
        f"prompts; 0.5 before training; by length alone {length.auc:.3f} [{short:.3f}, {long:.3f}])"
    )
    told = {**dataclasses.asdict(found), "length_auc": length.auc, "length_auc_ci": length.auc_ci}
    write_whole(job.output / SEPARATION, json.dumps(told, indent=2) + "\n")
