"""``jaxalign dpo``: from a model and preference pairs to a trained model on disk."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxalign import loop, optim
from jaxalign.checkpoint import Checkpoints, check_writable
from jaxalign.cli import runs
from jaxalign.cli.config import (
    TRAIN_RANGES,
    MeshSection,
    ModelSection,
    PairsSection,
    SamplesSection,
    TrainSection,
    check_ranges,
)
from jaxalign.cli.interrupt import Interrupt, telling
from jaxalign.cli.models import check_length, check_tokens, open_mesh, open_model
from jaxalign.cli.pairs import batch_options, make_trees, read_pairs
from jaxalign.cli.reference import with_reference
from jaxalign.cli.sampling import answers
from jaxalign.cli.summary import print_comparison, print_cost, print_samples
from jaxalign.data.batches import batches, evaluation_batches
from jaxalign.errors import UserError
from jaxalign.methods.dpo import dpo, pair_metrics
from jaxalign.models.model import Model
from jaxalign.models.tokenizer import load_tokenizer
from jaxalign.models.weights import save_model
from jaxalign.optim import OptimConfig
from jaxalign.tracking import METRICS_FILE, TIMINGS_FILE, LogConfig, Tracker, check_installed, read_jsonl


@dataclasses.dataclass(frozen=True)
class DpoSection:
    """The loss (Rafailov et al. 2023, arXiv:2305.18290).

    Args:
        beta: how strongly the policy is held to the reference
        label_smoothing: probability that a preference label is flipped (cDPO)
        reference: cached computes the reference's log-probs once, before training; live computes them in every step,
            from a second copy of the parameters
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
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
        optim: the optimiser
        train: the loop
        mesh: devices
        log: dashboards
        samples: answers before and after
    """

    model: ModelSection
    data: PairsSection
    output: str
    method: DpoSection = dataclasses.field(default_factory=DpoSection)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainSection = dataclasses.field(default_factory=TrainSection)
    mesh: MeshSection = dataclasses.field(default_factory=MeshSection)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    samples: SamplesSection = dataclasses.field(default_factory=SamplesSection)


def run(config: Config) -> None:
    """The whole job. What can be wrong is found before anything is written."""
    console = Console(highlight=False, soft_wrap=True)
    output, settings = Path(config.output).expanduser(), runs.settings(config)
    check(config)
    check_installed(config.log)
    check_writable(output)
    runs.check_resumable(output, settings, config.train.resume)
    mesh = open_mesh(config.mesh)

    tokenizer = load_tokenizer(config.model.path)
    records, held_records = read_pairs(config.data, config.train.seed, console)
    trees = make_trees(records, tokenizer, config.data, "training", console)
    held = make_trees(held_records, tokenizer, config.data, "held out", console)
    options, steps = batch_options(trees, held, config.train, mesh.shape["data"] * mesh.shape["fsdp"])
    optimizer, schedule = optim.make(config.optim, steps)

    model, params = open_model(config.model, mesh, console)
    check_length(model, config.data.max_length)
    check_tokens(model, (text for tree in [*trees, *held] for text in (tree.prompt, *tree.completions)))
    console.print(f"{steps} steps of {config.train.batch_size} pairs, in rows of {options['shapes']} (tokens, targets)")

    best, mode = config.train.best if held else None, config.train.best_mode
    with (
        Checkpoints(output / runs.CHECKPOINTS, keep=config.train.keep, best=best, mode=mode) as checkpoints,
        telling(checkpoints),
    ):
        resume_step = checkpoints.latest_step()
        prompts = [tree.prompt for tree in (held or trees)[: config.samples.prompts]]
        answered = None if resume_step is None else runs.read_samples(output)
        if answered is None:
            answered = {"prompt": [tokenizer.decode(prompt) for prompt in prompts]}
            answered["before"] = sample(config, model, params, tokenizer, prompts)
            runs.write_samples(output, answered)

        frozen = None
        if config.method.reference == "live":
            frozen = jax.tree.map(jnp.copy, params)  # the step reuses the buffers of the original
        else:
            trees, held = with_reference(
                output / runs.REFERENCE,
                model,
                params,
                trees,
                held,
                options=options,
                steps=steps,
                seed=config.train.seed,
                resuming=resume_step is not None,
                console=console,
            )
        runs.write_settings(output, settings)
        runs.write_base(output, model.config, tokenizer)
        method = dpo(model, beta=config.method.beta, label_smoothing=config.method.label_smoothing)
        state = loop.init_state(params, optimizer, jax.random.key(config.train.seed))
        del params  # the state's from here on
        if resume_step is not None:
            like = jax.tree.map(abstract, state)
            del state  # two of them may not fit
            state, _ = checkpoints.restore(like)
            console.print(f"going on after step {resume_step}")
        step_fn = loop.make_step(method, optimizer, state, frozen=frozen, learning_rate=schedule)
        evaluate = loop.make_eval(method, frozen=frozen)
        feed = loop.OnMesh(batches(trees, seed=config.train.seed, **options), mesh)
        held_feed = loop.OnMesh(evaluation_batches(held, **options), mesh) if held else None

        with (
            Interrupt() as interrupt,
            Tracker(
                output, total_steps=steps, config=config.log, resume_step=resume_step, settings=settings
            ) as tracker,
        ):
            if held_feed is not None and resume_step is None:
                tracker.log_eval(0, evaluate(state.params, state.method_state, held_feed))
            trained = loop.run(step_fn, state, feed, steps=steps)
            for step, (state, metrics) in enumerate(trained, start=1 + (resume_step or 0)):
                tracker.log(step, metrics)
                measured = {}
                if held_feed is not None and is_due(config.train.eval_every, step, steps):
                    measured = tracker.log_eval(step, evaluate(state.params, state.method_state, held_feed))
                if measured or interrupt.asked or is_due(config.train.checkpoint_every, step, steps):
                    checkpoints.save(state, metrics=measured)
                if interrupt.asked:
                    raise KeyboardInterrupt

    save_model(output / runs.MODEL, model, state.params, tokenizer)
    answered["after"] = sample(config, model, state.params, tokenizer, prompts)
    runs.write_samples(output, answered)
    print_samples(answered, console)
    print_comparison(read_jsonl(output / METRICS_FILE), len(held), console)
    print_cost(read_jsonl(output / TIMINGS_FILE), console)
    console.print(f"The trained model is in {output / runs.MODEL}, its metrics in {output / METRICS_FILE}.")


def check(config: Config) -> None:
    """Raise for settings that make no sense, before anything is read."""
    check_ranges(config, {**TRAIN_RANGES, "method.beta": (1e-6, math.inf), "method.label_smoothing": (0, 0.5)})
    none = jnp.zeros((1, 1, 2))
    measured = jax.eval_shape(lambda: pair_metrics(none, none, none[..., 0] > 0, beta=1.0))
    known = [f"eval/{name}" for name in ("loss", *measured)]
    if config.train.best not in known:
        raise UserError(f"train.best is {config.train.best}; give one of {', '.join(known)}.")


def sample(config: Config, model: Model, params: Any, tokenizer: Any, prompts: Sequence[np.ndarray]) -> list[str]:
    """The model's answers to prompts as training sees them."""
    return answers(
        model,
        params,
        tokenizer,
        prompts,
        max_new_tokens=config.samples.max_new_tokens,
        temperature=config.samples.temperature,
        key=jax.random.key(config.train.seed),
    )


def is_due(every: int, step: int, last: int) -> bool:
    """Whether what is done every so many steps (0: at the last only), and always at the last, is done at this one."""
    return step == last or (every > 0 and step % every == 0)


def abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    """Its shape and place: the array can go before a checkpoint's comes."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
