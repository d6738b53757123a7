"""``jaxalign export``: a run's checkpoint as a Hugging Face model directory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import jax

from jaxalign.checkpoint import Checkpoints, check_writable
from jaxalign.errors import UserError
from jaxalign.models import lora
from jaxalign.models.model import Model
from jaxalign.models.open import open_model
from jaxalign.models.params import fingerprint, partition, union
from jaxalign.models.sharding import make_mesh
from jaxalign.models.tokenizer import load_tokenizer
from jaxalign.models.weights import save_model
from jaxalign.recipes import run_directory as runs
from jaxalign.recipes.budget import WITHIN
from jaxalign.recipes.config import LoraSection
from jaxalign.recipes.fit import MODEL_INPUT
from jaxalign.settings import ModelSection


@dataclasses.dataclass(frozen=True)
class Config:
    """Write the parameters of a run's checkpoint as a Hugging Face model directory.

    Args:
        run: output directory of the run
        output: directory to write
        checkpoint: best, latest (of a run with a budget both are the last state within it), or a step that was kept
    """

    run: str
    output: str
    checkpoint: Literal["best", "latest"] | int = "best"


def run(config: Config) -> None:
    directory, output = Path(config.run).expanduser(), Path(config.output).expanduser()
    settings = runs.read_settings(directory)
    check_writable(output)
    model = Model(runs.read_base(directory), make_mesh())
    if settings.get("lora", {}).get("rank"):
        model = dataclasses.replace(model, lora=LoraSection(**settings["lora"]).config)
    shapes = jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        model.param_shapes(),
        model.param_shardings(),
    )
    best, mode = settings["train"].get("best"), settings["train"].get("best_mode", "max")
    part = "policy" if "value" in settings.get("method", {}) else None  # PPO trains a value model beside it
    folder = runs.CHECKPOINTS
    if settings.get("budget", {}).get("max_tax") and not isinstance(config.checkpoint, int):
        folder, best = WITHIN, None  # later checkpoints may be beyond it
    with Checkpoints(directory / folder, best=best, mode=mode, read_only=True) as checkpoints:
        match config.checkpoint:
            case "best":
                step = checkpoints.best_step() if best else checkpoints.latest_step()
            case "latest":
                step = checkpoints.latest_step()
            case int(step):
                pass
        wanted = shapes if model.lora is None else partition(shapes, lora.is_trained)[0]
        params = checkpoints.restore_params(wanted, step=step, part=part)
        measured = checkpoints.metrics(step) if step is not None else {}
    if model.lora is not None:  # the checkpoint holds what was trained: the rest is where it was
        _, base = open_model(ModelSection(**settings["model"]), model.mesh)
        if runs.read_inputs(directory).get(MODEL_INPUT) != fingerprint(base):
            raise UserError(f"{settings['model']['path']} is not the model that {directory} began with; restore it.")
        fixed, _ = partition(base, lambda path: path[0] in shapes and not lora.is_trained(path))
        model, params = lora.merge(model, union(params, fixed))
    save_model(output, model, params, load_tokenizer(str(directory / runs.BASE)))
    note = f", {best} {measured[best]:.4f}" if best in measured else ""
    print(f"The parameters of step {step}{note} are in {output}.")
