"""The reference's log-probs: computed once, kept with the run, and taken up again by the run that goes on."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from jaxalign import loop
from jaxalign.data.batches import attach, batches, evaluation_batches
from jaxalign.data.trees import Tree
from jaxalign.methods.dpo import reference_logps
from jaxalign.models.model import Model
from jaxalign.paths import write_whole
from jaxalign.tracking import duration


def with_reference(
    file: Path,
    model: Model,
    params: Any,
    trees: Sequence[Tree],
    held: Sequence[Tree],
    *,
    options: dict[str, Any],
    steps: int,
    seed: int,
    resuming: bool,
    console: Console,
) -> tuple[list[Tree], list[Tree]]:
    """The trees with the reference's log-probs [K] attached: those kept by this run, else computed now and kept.

    Args:
        file: where they are kept.
        model: the reference.
        params: its parameters.
        trees: to train on.
        held: to evaluate on.
        options: of the batches.
        steps: of the run: examples that it never draws are left out.
        seed: of the batches.
        resuming: whether the run goes on, with what an earlier one kept.
        console: where to tell.
    """
    found = read(file, len(trees), len(held)) if resuming else None
    if found is None:
        if resuming:
            console.print(f"{file} is missing or damaged, and computed again", markup=False)
        started, completions = time.perf_counter(), len(trees[0].completions)
        drawn = list(range(len(trees)))
        if steps * options["batch_size"] < len(trees):  # a short run need not wait for examples it never sees
            order = batches(trees, seed=seed, **options).iterate(0, steps)
            drawn = sorted({int(i) for rows, _ in order for i in rows.extras["index"][rows.example_mask][:, 0]})
        console.print(f"reference: log-probs of {len(drawn)} + {len(held)} examples")

        def logps(chosen: Sequence[Tree]) -> np.ndarray:
            if not chosen:
                return np.zeros((0, completions), np.float32)
            feed = loop.OnMesh(evaluation_batches(chosen, **options), model.mesh)
            live = track(feed, "reference", len(feed), console=console, transient=True, disable=not console.is_terminal)
            return reference_logps(model, params, live)

        # What is not computed must not be used unnoticed.
        train = np.full((len(trees), completions), np.nan, np.float32)
        train[drawn] = logps([trees[i] for i in drawn])
        found = train, logps(held)
        content = io.BytesIO()
        np.savez(content, train=found[0], held=found[1])
        write_whole(file, content.getvalue())
        console.print(f"reference: done in {duration(time.perf_counter() - started)}")
    return attach(trees, ref_logps=found[0]), attach(held, ref_logps=found[1])


def read(file: Path, count: int, held_count: int) -> tuple[np.ndarray, np.ndarray] | None:
    """What was kept for so many trees; None if it cannot be read."""
    try:
        with np.load(file) as kept:
            train, held = kept["train"], kept["held"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return (train, held) if (len(train), len(held)) == (count, held_count) else None
