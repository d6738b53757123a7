"""``jaxalign sft``: from a model and demonstrations to a fine-tuned model on disk."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal

from jaxtyping import Array

from jaxalign import losses, optim
from jaxalign.data.records import Demonstration
from jaxalign.methods.sft import sft
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
    LoraSection,
    SamplesSection,
    SftDataSection,
    TrainSection,
    check_best,
)
from jaxalign.recipes.examples import batch_options, make_trees, read_examples
from jaxalign.settings import MeshSection, ModelSection, check_ranges
from jaxalign.tracking import LogConfig

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
class Config:
    """Fine-tune a model on demonstrations.

    The same command goes on where an interrupted run stopped.

    Args:
        model: where to start
        data: demonstrations
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
    data: SftDataSection
    output: str
    method: SftSection = dataclasses.field(default_factory=SftSection)
    lora: LoraSection = dataclasses.field(default_factory=LoraSection)
    optim: OptimConfig = dataclasses.field(default_factory=lambda: OptimConfig(learning_rate=2e-5))
    train: TrainSection = dataclasses.field(default_factory=TrainSection)
    mesh: MeshSection = dataclasses.field(default_factory=MeshSection)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    samples: SamplesSection = dataclasses.field(default_factory=SamplesSection)
    budget: BudgetSection = dataclasses.field(default_factory=BudgetSection)


def run(config: Config) -> None:
    """The whole job. What can be wrong is found before anything is written."""
    check_ranges(config, {**TRAIN_RANGES, **SAMPLES_RANGES})
    check_best(config.train.best, ("loss", "nll", "perplexity"))
    check_budget(config.budget)
    job = training.start(config)

    tokenizer = load_tokenizer(config.model.path)
    records, held_records = read_examples(Demonstration, config.data, config.train.seed, job.console)
    trees, cut = make_trees(records, tokenizer, config.data, "training", job.console)
    held, cut_held = make_trees(held_records, tokenizer, config.data, "held out", job.console)
    options, steps = batch_options(trees, held, config.train, job.mesh.shape["data"] * job.mesh.shape["fsdp"])
    optimizer, schedule = optim.make_optimizer(config.optim, steps)

    base, params = open_model(config.model, job.mesh, lambda line: job.console.print(line, markup=False))
    check_language_model(base, config.model.path)
    check_trees(base, [*trees, *held], config.data.max_length, "data.max_length")
    training.announce(job, steps, options, "demonstrations")

    with training.checkpoints(job, evaluated=bool(held)) as kept:
        # Where whole texts are learned, a tree's prompt is its first token: nothing to answer.
        count = config.samples.prompts if config.data.loss_on == "assistant" else 0
        prompts = [tree.prompt for tree in (held or trees)[:count]]
        resuming = kept.latest_step() is not None
        training.begin(job, base.config, params, tokenizer, (trees, held), resuming=resuming)
        answered = training.answers_before(job, base, params, tokenizer, prompts, resuming=resuming)
        model, params, fixed = training.trainable(config.lora, base, params, config.train.seed)
        params = training.fit(
            job,
            sft(model, loss=LOSSES[config.method.loss]),
            params,
            optimizer,
            trees=trees,
            held=held,
            counts=cut | cut_held,
            options=options,
            steps=steps,
            kept=kept,
            schedule=schedule,
            fixed=fixed,
            measure=with_perplexity,
            subject=(model, tokenizer),
        )

    model, params = training.save(job, model, params, fixed, tokenizer)
    answered["after"] = training.sample(job, model, params, tokenizer, prompts)
    runs.write_samples(job.output, answered)
    training.report(job, held=len(held), answered=answered)


def with_perplexity(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics and e^nll: the nll is averaged over all tokens, and the perplexity of the whole is no mean.

    >>> with_perplexity({"nll": 0.0})
    {'nll': 0.0, 'perplexity': 1.0}
    """
    return {**metrics, "perplexity": math.exp(min(metrics["nll"], 700.0))}  # beyond that a float overflows
