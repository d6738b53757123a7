"""The reference's log-probs: computed once, kept with the run, and taken up again by the run that goes on."""

from __future__ import annotations

import hashlib
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
from jaxalign.errors import UserError
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
        file: where they are kept, with a fingerprint of the trees.
        model: the reference.
        params: its parameters.
        trees: to train on.
        held: to evaluate on.
        options: of the batches.
        steps: of the run: examples that it never draws are left out.
        seed: of the batches.
        resuming: whether the run goes on, with what an earlier one kept.
        console: where to tell.

    Raises:
        UserError: if the run goes on and ``file`` is of other trees.
    """
    digest = fingerprint(trees, held)
    found = read(file, digest) if resuming else None
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

        train = np.full(
            (len(trees), completions), np.nan, np.float32
        )  # what is not computed must not be used unnoticed
        train[drawn] = logps([trees[i] for i in drawn])
        found = train, logps(held)
        content = io.BytesIO()
        np.savez(content, train=found[0], held=found[1], trees=digest)
        write_whole(file, content.getvalue())
        console.print(f"reference: done in {duration(time.perf_counter() - started)}")
    return attach(trees, ref_logps=found[0]), attach(held, ref_logps=found[1])


def read(file: Path, digest: str) -> tuple[np.ndarray, np.ndarray] | None:
    """What was kept for the trees of this fingerprint; None if it cannot be read.

    Raises:
        UserError: if it was kept for others.
    """
    try:
        with np.load(file) as kept:
            train, held, trees = kept["train"], kept["held"], str(kept["trees"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if trees != digest:
        raise UserError(
            f"{file} is of other examples: the data, the tokenizer or the model's files have changed since the run "
            "began; give another output, or what it began with."
        )
    return train, held


def fingerprint(*groups: Sequence[Tree]) -> str:
    """A hash of all token ids and of which of them count.

    >>> one, other = Tree.of([1], [[2], [3]]), Tree.of([1, 2], [[3], [3]])
    >>> fingerprint([one]) == fingerprint([one]), fingerprint([one]) == fingerprint([other])
    (True, False)
    """
    digest = hashlib.sha256()
    for group in groups:
        digest.update(f"group of {len(group)};".encode())
        for tree in group:
            for array in (tree.prompt, *tree.completions, *tree.masks):
                digest.update(f"{array.dtype.str} {len(array)};".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
