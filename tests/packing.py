"""Trees of packed rows: the inverse of packing, for tests."""

import jax
import numpy as np

from jaxalign.data.trees import Packed, Tree


def unpack(packed: Packed) -> list[Tree]:
    """Returns the trees of packed rows by microbatch, row and example slot: the inverse of `pack`."""
    rows = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), packed.rows)
    completions = rows.last.shape[-1]
    trees = []
    for row, example in zip(*np.nonzero(rows.example_mask), strict=True):
        in_tree = rows.example[row] == example
        branches = [k for k in range(1, completions + 1) if np.any(in_tree & (rows.branch[row] == k))]
        slots = [rows.owner[row] == example * completions + k - 1 for k in branches]
        per_token = {name: value[row] for name, value in rows.extras.items() if value.ndim == 2}
        trees.append(
            Tree(
                rows.tokens[row][in_tree & (rows.branch[row] == 0)],
                tuple(rows.tokens[row][in_tree & (rows.branch[row] == k)] for k in branches),
                tuple(rows.mask[row][at] for at in slots),
                {name: v[row, example, : len(branches)] for name, v in rows.extras.items() if name not in per_token},
                {name: tuple(value[at] for at in slots) for name, value in per_token.items()},
            )
        )
    return trees
