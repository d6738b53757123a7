"""``jaxalign export``: a run's checkpoint as a Hugging Face model directory."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxalign.recipes.export import export_checkpoint


@dataclasses.dataclass(frozen=True)
class Config:
    """Write the parameters of a run's checkpoint as a Hugging Face model directory.

    Args:
        run: output directory of the run
        output: directory to write
        checkpoint: best, latest (of a run with a budget both are the last state within it), or a saved step
    """

    run: str
    output: str
    checkpoint: Literal["best", "latest"] | int = "best"


def run(config: Config) -> None:
    """Exports the checkpoint and prints which one it was."""
    step, metric, value = export_checkpoint(config.run, config.output, config.checkpoint)
    note = f", {metric} {value:.4f}" if value is not None else ""
    print(f"The parameters of step {step}{note} are in {config.output}.")
