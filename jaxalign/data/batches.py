"""Batches drawn by (seed, step), blind to length, as an array of steps: any step can be had without those before it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from jaxalign.data.shapes import choose_shapes
from jaxalign.data.trees import Packed, Tree, pack
from jaxalign.errors import UserError


@dataclasses.dataclass(frozen=True)
class Batches:
    """``batches[step]`` is the packed batch of a step, a pure function of the data, the seed and the step.

    So a run's place in the data is the step number alone: resuming is ``batches.iterate(start=step)``.
    """

    dataset: grain.MapDataset[Packed]
    num_examples: int
    batch_size: int
    shapes: tuple[tuple[int, int], ...]  # the row shapes (T, S) that may occur: one compiled program each

    def __getitem__(self, step: int) -> Packed:
        return self.dataset[step]

    def __len__(self) -> int:
        """Steps there are; practically without end for training batches."""
        return len(self.dataset)

    def __iter__(self) -> Iterator[Packed]:
        return self.iterate()

    @property
    def steps_per_epoch(self) -> float:
        return self.num_examples / self.batch_size

    def iterate(self, start: int = 0, stop: int | None = None, *, threads: int = 2, ahead: int = 4) -> Iterator[Packed]:
        """The batches of steps ``start``, ``start + 1``, … up to ``stop``; threads make the next ``ahead`` of them."""
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        yield from self.dataset[start:stop].to_iter_dataset(options)


def attach(trees: Sequence[Tree], **columns: Any) -> list[Tree]:
    """The trees with more extras: each column ``[N]`` (one value per tree) or ``[N, K]`` (one per completion).

    >>> attach([Tree.of([1], [[2], [3]])], index=[7], score=[[0.5, -0.5]])[0].extras["score"]
    array([ 0.5, -0.5], dtype=float32)
    """
    arrays = {name: np.asarray(column) for name, column in columns.items()}
    wrong = [name for name, array in arrays.items() if len(array) != len(trees)]
    if wrong:
        raise ValueError(f"column {wrong[0]!r} has {len(arrays[wrong[0]])} entries for {len(trees)} trees")
    more = (Tree.of(t.prompt, t.completions, **{n: a[i] for n, a in arrays.items()}) for i, t in enumerate(trees))
    return [
        dataclasses.replace(tree, extras={**tree.extras, **new.extras}) for tree, new in zip(trees, more, strict=True)
    ]


def batches(
    trees: Sequence[Tree],
    *,
    batch_size: int = 32,
    seed: int = 0,
    rows_per_microbatch: int = 1,
    shapes: Sequence[tuple[int, int]] | None = None,
    num_completions: int | None = None,
) -> Batches:
    """Training batches: every epoch in a new order, a batch at an epoch's end going on into the next.

    Every example's place in ``trees`` travels along as ``extras["index"]``, to look up what was computed for it once.

    Args:
        trees: the examples.
        batch_size: examples per step. Larger batches pack tighter: on 1,800 pairs of HH, the positions computed per
            distinct token are 1.12 for 8, 1.10 for 16, 1.07 for 32 and 1.04 for 64 (one row per microbatch).
        seed: of the order.
        rows_per_microbatch: R of :func:`jaxalign.data.trees.pack`.
        shapes: row shapes (T, S) to compile; by default :func:`jaxalign.data.shapes.choose_shapes` picks up to four.
        num_completions: K; by default the most any tree has.

    Raises:
        UserError: if there are no trees, or ``batch_size`` or ``rows_per_microbatch`` is not positive.
    """
    source = _source(trees, batch_size, rows_per_microbatch).shuffle(seed).repeat()
    return _batches(source, trees, batch_size, rows_per_microbatch, shapes, num_completions)


def mixed_batches(
    datasets: Sequence[Sequence[Tree]],
    weights: Sequence[float],
    *,
    batch_size: int = 32,
    seed: int = 0,
    rows_per_microbatch: int = 1,
    shapes: Sequence[tuple[int, int]] | None = None,
    num_completions: int | None = None,
) -> Batches:
    """Training batches of several data sets, each as often as its weight says, whatever its size.

    Each data set is gone through epoch by epoch, in a new order each; how they interleave is fixed by the weights, so
    a step is a pure function of the data, the seed and the step here too. ``extras["index"]`` counts on from one data
    set to the next, and an epoch (``steps_per_epoch``) is as many examples as there are in all.

    Args:
        datasets: the examples of each.
        weights: the share of the examples that each data set gives, up to a common factor.
        batch_size: as for :func:`batches`, like the rest.
        seed: of the orders.
        rows_per_microbatch: R.
        shapes: row shapes (T, S).
        num_completions: K.

    Raises:
        UserError: as :func:`batches`, or if there is not one positive weight per data set.
    """
    if len(weights) != len(datasets) or not all(0 < weight < math.inf for weight in weights):
        raise UserError(
            f"{len(datasets)} data sets have the weights {list(weights)}: give each a positive number, or leave it out"
        )
    trees = [tree for dataset in datasets for tree in dataset]
    names = {frozenset(tree.extras) for tree in trees}
    if len(names) > 1:
        differing = sorted(frozenset.union(*names) - frozenset.intersection(*names))
        raise UserError(f"not all data sets have {differing[0]!r}: give it to all of them or to none")
    sources = []
    start = 0
    for number, dataset in enumerate(datasets):
        source = _source(dataset, batch_size, rows_per_microbatch, start)
        # Another seed each: data sets of one size would otherwise have one order.
        sources.append(source.shuffle(seed ^ (number * 0x9E3779B1 & 0xFFFFFFFF)).repeat())
        start += len(dataset)
    source = grain.MapDataset.mix(sources, weights=list(weights))
    return _batches(source, trees, batch_size, rows_per_microbatch, shapes, num_completions)


def evaluation_batches(
    trees: Sequence[Tree],
    *,
    batch_size: int = 32,
    rows_per_microbatch: int = 1,
    shapes: Sequence[tuple[int, int]] | None = None,
    num_completions: int | None = None,
) -> Batches:
    """Every example once, in order; the last batch holds what is left. Arguments as in :func:`batches`.

    Pass the ``shapes`` of the training batches to compile nothing new, if its rows hold these trees.
    """
    source = _source(trees, batch_size, rows_per_microbatch)
    return _batches(source, trees, batch_size, rows_per_microbatch, shapes, num_completions)


def _source(trees: Sequence[Tree], batch_size: int, rows_per_microbatch: int, start: int = 0) -> grain.MapDataset[Tree]:
    if not trees:
        raise UserError("there are no examples to draw batches from: check the data and what was skipped or held out")
    for name, value in (("batch_size", batch_size), ("rows_per_microbatch", rows_per_microbatch)):
        if value < 1:
            raise UserError(f"{name}={value}: it must be at least 1")
    return grain.MapDataset.source(attach(trees, index=np.arange(start, start + len(trees))))


def _batches(
    source: grain.MapDataset[Tree],
    trees: Sequence[Tree],
    batch_size: int,
    rows_per_microbatch: int,
    shapes: Sequence[tuple[int, int]] | None,
    num_completions: int | None,
) -> Batches:
    chosen = shapes or choose_shapes(trees, batch_size=batch_size, rows_per_microbatch=rows_per_microbatch)
    most = num_completions or max(len(tree.completions) for tree in trees)

    def arrange(drawn: Sequence[Tree]) -> Packed:
        return pack(
            drawn,
            shapes=chosen,
            rows_per_microbatch=rows_per_microbatch,
            max_microbatches=-(-batch_size // rows_per_microbatch),
            num_completions=most,
        )

    return Batches(source.batch(batch_size, batch_fn=arrange), len(trees), batch_size, tuple(chosen))
