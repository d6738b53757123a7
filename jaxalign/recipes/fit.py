"""What training commands have in common: a run that logs, evaluates, saves, and goes on where it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console

from jaxalign import loop
from jaxalign.checkpoint import Checkpoints, check_writable
from jaxalign.data.batches import Batches, batches, evaluation_batches
from jaxalign.data.trees import Tree, fingerprint
from jaxalign.keys import stream
from jaxalign.models import lora
from jaxalign.models.config import ModelConfig
from jaxalign.models.model import Model
from jaxalign.models.open import open_mesh
from jaxalign.models.params import Params, partition, union
from jaxalign.models.params import fingerprint as params_fingerprint
from jaxalign.models.weights import save_model
from jaxalign.recipes import run_directory as runs
from jaxalign.recipes.budget import Budget
from jaxalign.recipes.config import LoraSection
from jaxalign.recipes.interrupt import Interrupt, telling
from jaxalign.recipes.summary import print_comparison, print_cost, print_samples
from jaxalign.rollout.text import answers
from jaxalign.tracking import METRICS_FILE, TIMINGS_FILE, Tracker, check_installed, read_jsonl

MODEL_INPUT = "the model at model.path"
Arrange = Callable[[Batches, bool], loop.Steps[Any]]


@dataclasses.dataclass(frozen=True)
class Run:
    """A training command's surroundings.

    Attributes:
        config: the command's settings; those of sections ``train``, ``log``, ``samples``, ``mesh`` and ``output`` are
            read here.
        settings: the same as plain values.
        output: the run's directory.
        mesh: the devices.
        console: where to tell.
    """

    config: Any
    settings: dict[str, Any]
    output: Path
    mesh: jax.sharding.Mesh
    console: Console


def start(config: Any) -> Run:
    """Look at what can be wrong before anything is read or written.

    Raises:
        UserError: for adapters that cannot be made, a dashboard that is not installed, an output that cannot be written
            or holds another run, or a mesh that does not fit the machine.
    """
    output, settings = Path(config.output).expanduser(), runs.settings(config)
    if config.lora.config is not None:
        lora.check(config.lora.config)
    check_installed(config.log)
    check_writable(output)
    runs.check_resumable(output, settings, config.train.resume)
    return Run(config, settings, output, open_mesh(config.mesh), Console(highlight=False, soft_wrap=True))


@contextlib.contextmanager
def checkpoints(run: Run, *, evaluated: bool) -> Iterator[Checkpoints]:
    """The run's checkpoints; Ctrl-C within says where the same command goes on."""
    train = run.config.train
    best = train.best if evaluated else None
    with (
        Checkpoints(run.output / runs.CHECKPOINTS, keep=train.keep, best=best, mode=train.best_mode) as kept,
        telling(kept),
    ):
        yield kept


def trainable(section: LoraSection, model: Model, params: Params, seed: int) -> tuple[Model, Params, Params]:
    """(model, what is trained, the fixed rest): all of ``params`` and None, or adapters (and fresh heads) beside it."""
    if section.config is None:
        return model, params, None
    model = dataclasses.replace(model, lora=section.config)
    adapters = lora.init(model, stream(seed, "adapters"))
    return model, *partition(union(adapters, params), lora.is_trained)


def begin(
    run: Run, config: ModelConfig, params: Params, tokenizer: Any, examples: Sequence[Sequence[Tree]], *, resuming: bool
) -> None:
    """Write down what the run is made of, or see that it goes on with the same.

    Raises:
        UserError: if the examples or the model changed since the run began.
    """
    inputs = {
        "the examples (the data or the tokenizer)": fingerprint(*examples),
        MODEL_INPUT: params_fingerprint(params),
    }
    runs.check_inputs(run.output, inputs, resuming)
    runs.write_settings(run.output, run.settings)
    runs.write_base(run.output, config, tokenizer)


def announce(run: Run, steps: int, options: dict[str, Any], what: str) -> None:
    """A line about the work ahead."""
    size, shapes = options["batch_size"], options["shapes"]
    run.console.print(f"{steps} steps of {size} {what}, in rows of {shapes} (tokens, targets)")


def fit(
    run: Run,
    method: loop.Method,
    params: Params,
    optimizer: optax.GradientTransformation,
    *,
    trees: Sequence[Tree],
    held: Sequence[Tree],
    options: dict[str, Any],
    steps: int,
    kept: Checkpoints,
    counts: Mapping[str, int],
    schedule: optax.Schedule | None = None,
    frozen: Any = None,
    fixed: Any = None,
    method_state: Any = (),
    arrange: Arrange | None = None,
    measure: Callable[[dict[str, float]], dict[str, float]] | None = None,
    subject: tuple[Model, Any] | None = None,
) -> Params:
    """Train to the last step, from the latest checkpoint where there is one.

    Args:
        run: its surroundings.
        method: what is minimised.
        params: what is trained; given up to the state, which reuses its buffers.
        optimizer: how.
        trees: examples to train on.
        held: examples to evaluate on; none, no evaluation.
        options: of the batches.
        steps: optimiser steps of the whole run.
        kept: the run's checkpoints.
        counts: of examples, and of what was cut or left out of them, to be among the metrics.
        schedule: the learning rate, to report it.
        frozen: see ``loop.make_step``.
        fixed: likewise.
        method_state: the method's own, at the start.
        arrange: makes what is fed of the training batches (False) and of the evaluation batches (True).
        measure: makes further metrics of those of an evaluation.
        subject: the model and its tokenizer, where the run may have a budget of capabilities.

    Returns:
        The trained parameters, the last ones within the budget.
    """
    train, resume_step = run.config.train, kept.latest_step()
    state = loop.init_state(params, optimizer, stream(train.seed, "loop"), method_state=method_state)
    if resume_step is not None:
        like = jax.tree.map(abstract, state)
        # Two of them may not fit, and the caller still names this one.
        jax.tree.map(lambda leaf: leaf.delete(), (state.params, state.opt_state))
        state, _ = kept.restore(like)
        run.console.print(f"going on after step {resume_step}")
    step_fn = loop.make_step(method, optimizer, state, frozen=frozen, fixed=fixed, learning_rate=schedule)
    evaluate = loop.make_eval(method, frozen=frozen, fixed=fixed)
    arrange = arrange or (lambda drawn, evaluated: drawn)
    feed = loop.OnMesh(arrange(batches(trees, seed=train.seed, **options), False), run.mesh)
    held_feed = loop.OnMesh(arrange(evaluation_batches(held, **options), True), run.mesh) if held else None

    with (
        Interrupt() as interrupt,
        Tracker(
            run.output, total_steps=steps, config=run.config.log, resume_step=resume_step, settings=run.settings
        ) as tracker,
        budget_of(run, fixed, subject, resuming=resume_step is not None) as budget,
    ):

        def evaluation(step: int) -> dict[str, float]:
            assert held_feed is not None
            found = evaluate(state.params, state.method_state, held_feed)
            return tracker.log_eval(step, measure(found) if measure else found)

        if held_feed is not None and resume_step is None:
            evaluation(0)
        if resume_step is None:
            tracker.note(0, {f"data/{name}": count for name, count in counts.items()})
        if budget is not None and resume_step is None:
            tracker.log_eval(0, budget.begin(state), prefix="budget/")
        trained = loop.run(step_fn, state, feed, steps=steps)
        for step, (state, metrics) in enumerate(trained, start=1 + (resume_step or 0)):
            tracker.log(step, metrics)
            if budget is not None and is_due(budget.section.every, step, steps):
                figures, exceeded = budget.measure(state, step)
                tracker.log_eval(step, figures, prefix="budget/")
                if exceeded is not None:
                    state, step = budget.restore(state)
                    run.console.print(f"{exceeded} The model of step {step} is kept.", markup=False)
                    if held_feed is not None:
                        evaluation(step)  # of what is kept, not of what went too far
                    break
            measured = {}
            if held_feed is not None and is_due(train.eval_every, step, steps):
                measured = evaluation(step)
            if measured or interrupt.asked or is_due(train.checkpoint_every, step, steps):
                kept.save(state, metrics=measured)
            if interrupt.asked:
                raise KeyboardInterrupt
    return state.params


@contextlib.contextmanager
def budget_of(
    run: Run,
    fixed: Params,
    subject: tuple[Model, Any] | None,
    *,
    resuming: bool,
    **options: Any,
) -> Iterator[Budget | None]:
    """The run's budget, None without one; ``options`` are ``Budget``'s."""
    if subject is None or not run.config.budget.max_tax:
        yield None
        return
    model, tokenizer = subject
    budget = Budget(
        run.config.budget,
        run.output,
        model,
        fixed,
        tokenizer,
        run.config.train.seed,
        run.console,
        resuming=resuming,
        **options,
    )
    with contextlib.closing(budget):
        yield budget


def answers_before(
    run: Run, model: Model, params: Params, tokenizer: Any, prompts: Sequence[np.ndarray], *, resuming: bool
) -> dict[str, list[str]]:
    """Answers of the untrained model, sampled now or kept by the run that goes on."""
    kept = runs.read_samples(run.output) if resuming else None
    if kept is None:
        kept = {"prompt": [tokenizer.decode(prompt) for prompt in prompts]}
        kept["before"] = sample(run, model, params, tokenizer, prompts)
        runs.write_samples(run.output, kept)
    return kept


def sample(run: Run, model: Model, params: Params, tokenizer: Any, prompts: Sequence[np.ndarray]) -> list[str]:
    """The model's answers to prompts as training sees them."""
    return answers(
        model,
        params,
        tokenizer,
        prompts,
        max_new_tokens=run.config.samples.max_new_tokens,
        temperature=run.config.samples.temperature,
        key=stream(run.config.train.seed, "samples"),
    )


def save(run: Run, model: Model, trained: Params, fixed: Params, tokenizer: Any) -> tuple[Model, Params]:
    """Write the trained model, adapters merged into it and by themselves too; returns it."""
    params = union(trained, fixed)
    if model.lora is not None:
        lora.save(run.output / runs.ADAPTER, model, trained, run.config.model.path)
        model, params = lora.merge(model, params)
    save_model(run.output / runs.MODEL, model, params, tokenizer)
    return model, params


def report(run: Run, *, held: int, answered: dict[str, list[str]] | None = None) -> None:
    """What a run ends with: answers and metrics before and after, what it cost, and where everything is."""
    if answered is not None:
        print_samples(answered, run.console)
    print_comparison(read_jsonl(run.output / METRICS_FILE), held, run.console)
    print_cost(read_jsonl(run.output / TIMINGS_FILE), run.console)
    run.console.print(f"The trained model is in {run.output / runs.MODEL}, its metrics in {run.output / METRICS_FILE}.")


def is_due(every: int, step: int, last: int) -> bool:
    """Whether what is done every so many steps (0: at the last only), and always at the last, is done at this one."""
    return step == last or (every > 0 and step % every == 0)


def abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    """Its shape and place: the array can go before a checkpoint's comes."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
