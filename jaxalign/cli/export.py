"""``jaxalign export``: a run's checkpoint as a Hugging Face model directory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import jax

from jaxalign.checkpoint import Checkpoints, check_writable
from jaxalign.cli import runs
from jaxalign.models.model import Model
from jaxalign.models.sharding import make_mesh
from jaxalign.models.tokenizer import load_tokenizer
from jaxalign.models.weights import save_model


@dataclasses.dataclass(frozen=True)
class Config:
    """Write the parameters of a run's checkpoint as a Hugging Face model directory.

    Args:
        run: output directory of the run
        output: directory to write
        checkpoint: best, latest, or the step of one that was kept
    """

    run: str
    output: str
    checkpoint: Literal["best", "latest"] | int = "best"


def run(config: Config) -> None:
    directory, output = Path(config.run).expanduser(), Path(config.output).expanduser()
    settings = runs.read_settings(directory)
    check_writable(output)
    model = Model(runs.read_base(directory), make_mesh())
    shapes = jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        model.param_shapes(),
        model.param_shardings(),
    )
    best, mode = settings["train"]["best"], settings["train"]["best_mode"]
    with Checkpoints(directory / runs.CHECKPOINTS, best=best, mode=mode, read_only=True) as checkpoints:
        match config.checkpoint:
            case "best":
                step = checkpoints.best_step()
            case "latest":
                step = checkpoints.latest_step()
            case int(step):
                pass
        params = checkpoints.restore_params(shapes, step=step)
        measured = checkpoints.metrics(step) if step is not None else {}
    save_model(output, model, params, load_tokenizer(str(directory / runs.BASE)))
    note = f", {best} {measured[best]:.4f}" if best in measured else ""
    print(f"The parameters of step {step}{note} are in {output}.")
