"""The steps that every recipe shares: open a run, load its model, record its inputs, sample, save, and finish.

A recipe reads from top to bottom as a list of such steps. Each is a plain function, so a script can copy a recipe and
replace one of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.checkpoint import Checkpoints, check_writable
from jaxalign.data.trees import Tree, fingerprint
from jaxalign.errors import UserError
from jaxalign.keys import stream
from jaxalign.models import lora
from jaxalign.models.model import Model
from jaxalign.models.open import open_mesh, open_model
from jaxalign.models.params import Params, partition, union
from jaxalign.models.params import fingerprint as params_fingerprint
from jaxalign.models.tokenizer import load_tokenizer
from jaxalign.models.weights import save_model
from jaxalign.recipes import run_directory
from jaxalign.recipes.budget import Budget
from jaxalign.recipes.config import LoraSection
from jaxalign.recipes.interrupt import describe_interrupt
from jaxalign.reporting import Report, silent
from jaxalign.rollout.text import answers
from jaxalign.settings import plain_settings
from jaxalign.stats import wilson
from jaxalign.tracking import METRICS_FILE, check_installed

MODEL_INPUT = "the model"
OnStep: TypeAlias = Callable[[int, Any, Mapping[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Run:
    """The surroundings of a recipe.

    Attributes:
        config: The recipe's configuration.
        settings: The same as plain values.
        directory: The output directory; None writes nothing.
        mesh: The devices.
        tokenizer: The model's tokenizer.
        report: Receives a line of text.
        on_step: Called as ``on_step(step, state, metrics)`` after each step.
        checkpoints: The run's checkpoints, within ``open_checkpoints`` and with a directory.
    """

    config: Any
    settings: dict[str, Any]
    directory: Path | None
    mesh: jax.sharding.Mesh
    tokenizer: Any
    report: Report
    on_step: OnStep | None = None
    checkpoints: Checkpoints | None = None

    @property
    def is_resuming(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self.checkpoints is not None and self.checkpoints.latest_step() is not None


@dataclasses.dataclass(frozen=True)
class Result:
    """The outcome of a recipe.

    Attributes:
        model: The trained model; adapters are merged into it.
        params: Its parameters.
        tokenizer: Its tokenizer.
        history: The metrics of each logged step, with its number under ``step``.
        before: Evaluation metrics before training, named as in metrics.jsonl; 95 % intervals are in ``NAME_ci``.
        after: Evaluation metrics after training.
        samples: Prompts with the answers before and after training, as ``prompt``, ``before`` and ``after``.
        directory: The output directory; None if nothing was written.
    """

    model: Model
    params: Params
    tokenizer: Any
    history: list[dict[str, Any]]
    before: dict[str, Any]
    after: dict[str, Any]
    samples: list[dict[str, str]]
    directory: Path | None


class Trainable(NamedTuple):
    """A model with its parameters in two parts: ``trained``, and ``fixed`` (None, or the base of adapters)."""

    model: Model
    trained: Params
    fixed: Params


def open_run(
    config: Any,
    *,
    model: tuple[Model, Params] | None = None,
    tokenizer: Any = None,
    on_step: OnStep | None = None,
    report: Report | None = None,
) -> Run:
    """Checks everything that can be checked before data and model are read, and opens the run with its tokenizer.

    Raises:
        UserError: For adapters that cannot be made, a dashboard that is not installed, an output that cannot be
            written or contains another run, a mesh that does not fit the machine, or a tokenizer that is missing.
    """
    directory = None if config.output is None else Path(config.output).expanduser()
    settings = plain_settings(config)
    if config.lora.config is not None:
        lora.check_lora_config(config.lora.config)
    check_installed(config.log)
    if directory is not None:
        check_writable(directory)
        run_directory.check_resumable(directory, settings, config.train.resume)
    elif config.log.tensorboard or config.log.wandb is not None:
        raise UserError("log.tensorboard and log.wandb write into the output directory. Set output, or leave both out.")
    mesh = open_mesh(config.mesh) if model is None else model[0].mesh
    if tokenizer is None:
        if not config.model.path:
            raise UserError("The tokenizer is missing. Pass tokenizer=, or set model.path.")
        tokenizer = load_tokenizer(config.model.path)
    return Run(config, settings, directory, mesh, tokenizer, report or silent, on_step)


def open_starting_model(run: Run, model: tuple[Model, Params] | None = None) -> tuple[Model, Params]:
    """Returns the model that was passed, its parameters placed on its mesh, or loads the configured one."""
    if model is None:
        return open_model(run.config.model, run.mesh, run.report)
    description, params = model
    return description, jax.device_put(params, description.param_shardings())


def make_trainable(section: LoraSection, model: Model, params: Params, seed: int, *, copy: bool = False) -> Trainable:
    """Splits a model into what is trained and what is fixed.

    Args:
        section: Adapters, or none.
        model: The model.
        params: Its parameters.
        seed: Seed of fresh adapters.
        copy: Whether the trained part must be a copy, because a step donates its buffers and they are needed elsewhere.
    """
    if section.config is None:
        return Trainable(model, jax.tree.map(jnp.copy, params) if copy else params, None)
    model = dataclasses.replace(model, lora=section.config)
    adapters = lora.init(model, stream(seed, "adapters"))
    trained, fixed = partition(union(adapters, params), lora.is_trained)
    # Reward heads are trained with the adapters: they are part of the parameters that were passed.
    return Trainable(model, jax.tree.map(jnp.copy, trained) if copy else trained, fixed)


@contextlib.contextmanager
def open_checkpoints(run: Run, *, evaluated: bool = False) -> Iterator[Run]:
    """Yields the run with its checkpoints, if it has a directory. Ctrl-C within it names the step to resume from."""
    if run.directory is None:
        yield run
        return
    train = run.config.train
    options = {"best": train.best, "mode": train.best_mode} if evaluated else {}
    with (
        Checkpoints(run.directory / run_directory.CHECKPOINTS, keep=train.keep, **options) as checkpoints,
        describe_interrupt(checkpoints),
    ):
        yield dataclasses.replace(run, checkpoints=checkpoints)


def record_inputs(run: Run, model: Model, params: Params, examples: Sequence[Sequence[Tree]], **functions: Any) -> None:
    """Writes the run's settings, base model and fingerprints of its inputs, or checks that they are unchanged.

    Args:
        run: The run.
        model: The model to start from.
        params: Its parameters.
        examples: Training and evaluation examples.
        **functions: Functions that were passed in place of configured ones; they are recorded by name.

    Raises:
        UserError: If a run resumes with other inputs.
    """
    if run.directory is None:
        return
    inputs = {
        "the examples (the data or the tokenizer)": fingerprint(*examples),
        MODEL_INPUT: params_fingerprint(params),
    }
    inputs |= {f"the argument {name}": _name_of(value) for name, value in functions.items() if value is not None}
    run_directory.check_inputs(run.directory, inputs, run.is_resuming)
    run_directory.write_settings(run.directory, run.settings)
    run_directory.write_base(run.directory, model.config, run.tokenizer)


def _name_of(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_name_of(part)}" for name, part in value.items())
    return f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', type(value).__qualname__)}"


def sample_answers(run: Run, model: Model, params: Params, prompts: Sequence[np.ndarray]) -> list[str]:
    """Returns the model's answers to tokenised prompts, sampled as the section ``samples`` says."""
    section = run.config.samples
    return answers(
        model,
        params,
        run.tokenizer,
        prompts,
        max_new_tokens=section.max_new_tokens,
        temperature=section.temperature,
        key=stream(run.config.train.seed, "samples"),
    )


def sample_before(run: Run, model: Model, params: Params, prompts: Sequence[np.ndarray]) -> dict[str, list[str]]:
    """Returns prompts and the untrained model's answers; a resumed run reads those that it stored."""
    if run.directory is not None and run.is_resuming:
        samples = run_directory.read_samples(run.directory)
        if samples is not None:
            return samples
    samples = {"prompt": [run.tokenizer.decode(prompt) for prompt in prompts]}
    samples["before"] = sample_answers(run, model, params, prompts)
    if run.directory is not None:
        run_directory.write_samples(run.directory, samples)
    return samples


@contextlib.contextmanager
def open_budget(run: Run, trainable: Trainable, **options: Any) -> Iterator[Budget | None]:
    """Yields the run's budget of capability, or None if none is set; ``options`` are those of ``Budget``."""
    section = getattr(run.config, "budget", None)
    if section is None or not section.max_tax:
        yield None
        return
    model, fixed, seed = trainable.model, trainable.fixed, run.config.train.seed
    options["resuming"] = run.is_resuming
    budget = Budget(section, run.directory, model, fixed, run.tokenizer, seed, run.report, **options)
    with contextlib.closing(budget):
        yield budget


def save_trained(run: Run, policy: Trainable) -> tuple[Model, Params]:
    """Returns the trained model with adapters merged into it, after writing it, and the adapters, to the directory."""
    model, params = policy.model, union(policy.trained, policy.fixed)
    if model.lora is not None:
        if run.directory is not None:
            adapter = run.directory / run_directory.ADAPTER
            lora.save(adapter, model, policy.trained, run.config.model.path)
        model, params = lora.merge(model, params)
    if run.directory is not None:
        save_model(run.directory / run_directory.MODEL, model, params, run.tokenizer)
    return model, params


def finish(
    run: Run,
    policy: Trainable,
    lines: Sequence[Mapping[str, Any]],
    *,
    prompts: Sequence[np.ndarray] = (),
    samples: dict[str, list[str]] | None = None,
    num_eval: int = 0,
    figures: Mapping[str, Any] | None = None,
) -> Result:
    """Saves the trained model, samples its answers, and collects the result.

    Args:
        run: The run.
        policy: The trained model in two parts.
        lines: The lines of the metrics file.
        prompts: Prompts to answer.
        samples: The answers before training.
        num_eval: Number of evaluation examples, for the intervals of shares.
        figures: Further evaluation figures after training.
    """
    model, params = save_trained(run, policy)
    if samples is not None:
        samples = {**samples, "after": sample_answers(run, model, params, prompts)}
        if run.directory is not None:
            run_directory.write_samples(run.directory, samples)
    evaluations = [with_intervals(line, num_eval) for line in lines if any(name.startswith("eval/") for name in line)]
    if run.directory is not None:
        run.report(
            f"The trained model is in {run.directory / run_directory.MODEL}, its metrics in "
            f"{run.directory / METRICS_FILE}."
        )
    return Result(
        model,
        params,
        run.tokenizer,
        [dict(line) for line in lines if "loss" in line],
        evaluations[0] if evaluations else {},
        {**(evaluations[-1] if evaluations else {}), **(figures or {})},
        [dict(zip(samples, texts, strict=True)) for texts in zip(*samples.values(), strict=True)] if samples else [],
        run.directory,
    )


def with_intervals(metrics: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Returns evaluation metrics with a Wilson interval in ``NAME_ci`` for each share of ``count`` examples.

    >>> round(with_intervals({"eval/rewards/accuracies": 0.5}, 100)["eval/rewards/accuracies_ci"][0], 3)
    0.404
    """
    shares = {name: value for name, value in metrics.items() if name.endswith("accuracies") and value is not None}
    return {**metrics, **{f"{name}_ci": wilson(value, count) for name, value in shares.items()}}
