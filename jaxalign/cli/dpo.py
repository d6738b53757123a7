"""``jaxalign dpo``: from a model and preference pairs to a trained model on disk."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxalign import optim
from jaxalign.data.records import Preference
from jaxalign.errors import UserError
from jaxalign.methods.dpo import dpo, pair_metrics
from jaxalign.models.open import check_language_model, check_trees, open_model
from jaxalign.models.tokenizer import load_tokenizer
from jaxalign.optim import OptimConfig
from jaxalign.recipes import fit as training
from jaxalign.recipes import run_directory as runs
from jaxalign.recipes.budget import BudgetSection
from jaxalign.recipes.budget import check as check_budget
from jaxalign.recipes.config import (
    SAMPLES_RANGES,
    TRAIN_RANGES,
    DataSection,
    LoraSection,
    SamplesSection,
    TrainSection,
    check_best,
)
from jaxalign.recipes.examples import batch_options, make_trees, read_examples
from jaxalign.recipes.reference import with_reference
from jaxalign.settings import MeshSection, ModelSection, check_ranges
from jaxalign.tracking import LogConfig


@dataclasses.dataclass(frozen=True)
class DpoSection:
    """The loss (Rafailov et al. 2023, arXiv:2305.18290).

    Args:
        beta: how strongly the policy is held to the reference
        label_smoothing: probability that a preference label is flipped (cDPO)
        soft_labels: take that probability from each pair's field label_smoothing, as `jaxalign judge` writes it
        reference: cached computes the reference's log-probs once, before training; live computes them in every step,
            from a second copy of the parameters, or with lora from the base itself
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    soft_labels: bool = False
    reference: Literal["cached", "live"] = "cached"


@dataclasses.dataclass(frozen=True)
class Config:
    """Align a model on preference pairs with direct preference optimisation.

    The same command goes on where an interrupted run stopped.

    Args:
        model: the policy, which is also the reference it starts from
        data: preference pairs
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
    data: DataSection
    output: str
    method: DpoSection = dataclasses.field(default_factory=DpoSection)
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
    console, mesh = job.console, job.mesh

    tokenizer = load_tokenizer(config.model.path)
    records, held_records = read_examples(Preference, config.data, config.train.seed, console)
    trees, cut = make_trees(records, tokenizer, config.data, "training", console)
    held, cut_held = make_trees(held_records, tokenizer, config.data, "held out", console)
    if config.method.soft_labels and any("label_smoothing" not in tree.extras for tree in [*trees, *held]):
        raise UserError(
            f"{config.data.path}: not every pair has a field 'label_smoothing' for method.soft_labels: add it, "
            "or leave method.soft_labels away."
        )
    options, steps = batch_options(trees, held, config.train, mesh.shape["data"] * mesh.shape["fsdp"])
    optimizer, schedule = optim.make_optimizer(config.optim, steps)

    reference, params = open_model(config.model, mesh, lambda line: console.print(line, markup=False))
    check_language_model(reference, config.model.path)
    check_trees(reference, [*trees, *held], config.data.max_length, "data.max_length")
    training.announce(job, steps, options, "pairs")

    with training.checkpoints(job, evaluated=bool(held)) as kept:
        resuming = kept.latest_step() is not None
        training.begin(job, reference.config, params, tokenizer, (trees, held), resuming=resuming)
        prompts = [tree.prompt for tree in (held or trees)[: config.samples.prompts]]
        answered = training.answers_before(job, reference, params, tokenizer, prompts, resuming=resuming)
        if config.method.reference == "cached":
            trees, held = with_reference(
                job.output / runs.REFERENCE,
                reference,
                params,
                trees,
                held,
                options=options,
                steps=steps,
                seed=config.train.seed,
                resuming=resuming,
                console=console,
            )
        model, params, fixed = training.trainable(config.lora, reference, params, config.train.seed)
        frozen = None
        if config.method.reference == "live" and fixed is None:
            frozen = jax.tree.map(jnp.copy, params)  # the step reuses the buffers of the original
        doubt: dict[str, Any] = {} if config.method.soft_labels else {"label_smoothing": config.method.label_smoothing}
        method = dpo(model, beta=config.method.beta, soft_labels=config.method.soft_labels, **doubt)
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
            subject=(model, tokenizer),
        )

    model, params = training.save(job, model, params, fixed, tokenizer)
    answered["after"] = training.sample(job, model, params, tokenizer, prompts)
    runs.write_samples(job.output, answered)
    training.report(job, held=len(held), answered=answered)


def check(config: Config) -> None:
    """Raise for settings that make no sense, before anything is read."""
    check_budget(config.budget)
    if config.method.soft_labels and config.method.label_smoothing:
        raise UserError("method.label_smoothing is one number for all pairs and method.soft_labels one each; give one.")
    ranges = {"method.beta": (1e-6, math.inf), "method.label_smoothing": (0, 0.5)}
    check_ranges(config, {**TRAIN_RANGES, **SAMPLES_RANGES, **ranges})
    none = jnp.zeros((1, 1, 2))
    measured = jax.eval_shape(lambda: pair_metrics(none, none, none[..., 0] > 0, beta=1.0))
    check_best(config.train.best, ("loss", *measured))
