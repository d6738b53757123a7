"""A run's checkpoint as a Hugging Face model directory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from jaxalign.checkpoint import Checkpoints, check_writable
from jaxalign.errors import UserError
from jaxalign.models import lora
from jaxalign.models.model import Model
from jaxalign.models.open import open_model
from jaxalign.models.params import Params, fingerprint, partition, union
from jaxalign.models.sharding import make_mesh
from jaxalign.models.tokenizer import load_tokenizer
from jaxalign.models.weights import save_model
from jaxalign.recipes import run_directory as runs
from jaxalign.recipes.budget import WITHIN
from jaxalign.recipes.config import LoraSection
from jaxalign.recipes.steps import MODEL_INPUT
from jaxalign.settings import ModelSection

Choice = Literal["best", "latest"] | int


class Exported(NamedTuple):
    """The checkpoint that was exported.

    Attributes:
        step: training step of the checkpoint.
        metric: name of the metric that ranks the run's checkpoints, or None.
        value: that metric at this step, or None where it was not measured.
    """

    step: int | None
    metric: str | None
    value: float | None


def export_checkpoint(run: str | Path, output: str | Path, checkpoint: Choice = "best") -> Exported:
    """Writes the parameters of a run's checkpoint as a Hugging Face model directory, adapters merged.

    Args:
        run: output directory of the run.
        output: directory to write.
        checkpoint: ``best``, ``latest``, or a step that was saved. Of a run with a budget, ``best`` and ``latest`` are
            both the last state within the budget.

    Returns:
        The step that was exported, with its metric.

    Raises:
        UserError: if ``run`` is not a run's directory, the checkpoint does not exist, the base model of the adapters
            has changed, or ``output`` cannot be written.
    """
    directory, output = Path(run).expanduser(), Path(output).expanduser()
    settings = runs.read_settings(directory)
    check_writable(output)
    model = Model(runs.read_base(directory), make_mesh())
    if settings.get("lora", {}).get("rank"):
        model = dataclasses.replace(model, lora=LoraSection(**settings["lora"]).config)
    params, exported = _restore(directory, settings, model, checkpoint)
    if model.lora is not None:
        model, params = _merge_adapters(directory, settings, model, params)
    save_model(output, model, params, load_tokenizer(str(directory / runs.BASE)))
    return exported


def _restore(directory: Path, settings: dict[str, Any], model: Model, choice: Choice) -> tuple[Params, Exported]:
    """Returns the trained parameters of a checkpoint and the description of that checkpoint."""
    shapes = jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        model.param_shapes(),
        model.param_shardings(),
    )
    wanted = shapes if model.lora is None else partition(shapes, lora.is_trained)[0]
    best, mode = settings["train"].get("best"), settings["train"].get("best_mode", "max")
    # PPO trains a value model together with the policy.
    part = "policy" if "value" in settings.get("method", {}) else None
    folder = runs.CHECKPOINTS
    if settings.get("budget", {}).get("max_tax") and not isinstance(choice, int):
        folder, best = WITHIN, None  # later checkpoints may exceed the budget
    with Checkpoints(directory / folder, best=best, mode=mode, read_only=True) as checkpoints:
        if isinstance(choice, int):
            step: int | None = choice
        else:
            step = checkpoints.best_step() if choice == "best" and best else checkpoints.latest_step()
        params = checkpoints.restore_params(wanted, step=step, part=part)
        metrics = checkpoints.metrics(step) if step is not None else {}
    return params, Exported(step, best, metrics.get(best))


def _merge_adapters(directory: Path, settings: dict[str, Any], model: Model, adapters: Params) -> tuple[Model, Params]:
    """Merges a checkpoint's adapters into the base model, which the checkpoint does not contain."""
    _, base = open_model(ModelSection(**settings["model"]), model.mesh)
    if runs.read_inputs(directory).get(MODEL_INPUT) != fingerprint(base):
        raise UserError(f"{settings['model']['path']} is not the model that {directory} began with. Restore it.")
    shapes = model.param_shapes()
    fixed, _ = partition(base, lambda path: path[0] in shapes and not lora.is_trained(path))
    return lora.merge(model, union(adapters, fixed))
