"""Chooses the row shapes that a run compiles: few programs, little waste."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxalign.data.trees import Tree, plan_rows, tree_sizes

# Multiples of 128 fill the tiles of matrix units. The short lengths are for toy data.
LENGTHS = (32, 64, *range(128, 1025, 128), *range(1280, 2049, 256), *range(2560, 8193, 512))
FRACTIONS = (3 / 8, 1 / 2, 5 / 8, 3 / 4, 1.0)  # of a row's columns that may be targets


def choose_shapes(
    trees: Sequence[Tree],
    *,
    batch_size: int,
    rows_per_microbatch: int = 1,
    max_programs: int = 4,
    worth: float = 0.01,
    trials: int | None = None,
) -> list[tuple[int, int]]:
    """Chooses row shapes (T, S) for batches of these trees: at most ``max_programs``, with one compiled program each.

    Random batches are packed in every candidate shape. The first choice is the cheapest shape that fits all trees. The
    shape that lowers the summed price most is then added, as long as it lowers it by a share of ``worth``. The choice
    depends on the trees and the arguments alone: the trial batches have a fixed seed.

    Args:
        trees: The examples.
        batch_size: Examples per step.
        rows_per_microbatch: R of :func:`jaxalign.data.trees.pack`.
        max_programs: Maximum number of shapes.
        worth: Minimum share of the price that another shape must save.
        trials: Number of random batches; by default 64, or fewer if batches are large.

    Returns:
        The shapes, sorted.
    """
    sizes = tree_sizes(trees)
    longest = int(sizes[:, 0].max())
    lengths = [t for t in LENGTHS if t <= max(2 * longest, 512)]  # longer rows only add the cost of attention
    if lengths[-1] < longest:
        lengths.append(-(-longest // 512) * 512)
    candidates = [(t, int(t * fraction)) for t in lengths for fraction in FRACTIONS]

    random = np.random.default_rng(0)
    trials = trials or min(64, max(4, 2048 // batch_size))
    draws = [random.choice(len(trees), batch_size, replace=batch_size > len(trees)) for _ in range(trials)]
    prices = np.array([[_price(sizes[draw], shape, rows_per_microbatch) for shape in candidates] for draw in draws])
    holds_all = [t >= longest and s >= sizes[:, 1].max() for t, s in candidates]

    chosen = [int(np.argmin(np.where(holds_all, prices.sum(0), np.inf)))]
    best = prices[:, chosen[0]]
    while len(chosen) < max_programs:
        totals = np.minimum(best[:, None], prices).sum(0)
        shape = int(np.argmin(totals))
        if totals[shape] > (1 - worth) * best.sum():
            break
        chosen.append(shape)
        best = np.minimum(best, prices[:, shape])
    return sorted(candidates[i] for i in chosen)


def _price(sizes: np.ndarray, shape: tuple[int, int], rows_per_microbatch: int) -> float:
    planned = plan_rows(sizes, [shape], rows_per_microbatch)
    return np.inf if planned is None else planned.price
