"""The reference's log-probabilities, computed once before training and stored with the run."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign import loop
from jaxalign.data.batches import attach, batches, evaluation_batches
from jaxalign.data.trees import Tree
from jaxalign.methods.dpo import reference_logps
from jaxalign.models.model import Model
from jaxalign.paths import write_whole
from jaxalign.recipes import run_directory
from jaxalign.recipes.fit import Examples, Plan
from jaxalign.recipes.steps import Run
from jaxalign.reporting import format_duration, progress


def with_reference(
    run: Run, model: Model, params: Any, examples: Examples, plan: Plan, *, ld_alpha: float | None = None
) -> Examples:
    """Attaches the reference's log-probs [K], in nats, to all examples: those that the run stored, or new ones.

    Args:
        run: The run.
        model: The reference.
        params: Its parameters.
        examples: The examples.
        plan: Steps and batches; examples that the run never draws are left out.
        ld_alpha: Weight of tokens beyond the shorter completion's length, as in ``methods.dpo``.
    """
    file = None if run.directory is None else run.directory / run_directory.REFERENCE
    logps = None
    if file is not None and run.is_resuming:
        logps = read_reference(file, len(examples.train), len(examples.eval))
        if logps is None:
            run.report(f"{file} is missing or damaged. It is computed again.")
    if logps is None:
        logps = compute_reference(run, model, params, examples, plan, ld_alpha=ld_alpha)
        if file is not None:
            content = io.BytesIO()
            np.savez(content, train=logps[0], held=logps[1])
            write_whole(file, content.getvalue())
    return examples._replace(
        train=attach(examples.train, ref_logps=logps[0]), eval=attach(examples.eval, ref_logps=logps[1])
    )


def compute_reference(
    run: Run, model: Model, params: Any, examples: Examples, plan: Plan, *, ld_alpha: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the reference's log-probs of training and evaluation examples, [N, K] each; NaN where never drawn."""
    started, trees = time.perf_counter(), examples.train
    indices = list(range(len(trees)))
    if plan.steps * plan.options["batch_size"] < len(trees):  # a short run need not wait for examples it never sees
        order = batches(trees, seed=run.config.train.seed, **plan.options).iterate(0, plan.steps)
        indices = sorted({int(i) for rows, _ in order for i in rows.extras["index"][rows.example_mask][:, 0]})
    run.report(f"reference: log-probs of {len(indices)} + {len(examples.eval)} examples")

    def compute(part: Sequence[Tree]) -> np.ndarray:
        if not part:
            return np.zeros((0, len(trees[0].completions)), np.float32)
        on_mesh = loop.OnMesh(evaluation_batches(part, **plan.options), model.mesh)
        reported = progress(on_mesh, "reference", len(on_mesh), run.report)
        return reference_logps(model, params, reported, ld_alpha=ld_alpha)

    # NaN: a value that was not computed must not be used unnoticed.
    train = np.full((len(trees), len(trees[0].completions)), np.nan, np.float32)
    train[indices] = compute([trees[i] for i in indices])
    held_out = compute(examples.eval)
    run.report(f"reference: done in {format_duration(time.perf_counter() - started)}")
    return train, held_out


def read_reference(file: Path, count: int, eval_count: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the stored log-probs of so many examples, or None if they cannot be read."""
    try:
        with np.load(file) as stored:
            train, held_out = stored["train"], stored["held"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return (train, held_out) if (len(train), len(held_out)) == (count, eval_count) else None
