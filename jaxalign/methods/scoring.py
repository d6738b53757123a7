"""Log-probabilities and scores of the completions of prompt trees, outside training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxalign.data.batches import attach
from jaxalign.data.shapes import LENGTHS
from jaxalign.data.trees import Tree, pack
from jaxalign.errors import UserError
from jaxalign.masking import Rows
from jaxalign.methods.dpo import completion_logps
from jaxalign.models.model import Model

# Trees that are packed together.
CHUNK = 256
# (columns, target slots) of a row.
SHAPES = [(length, length // part) for length in LENGTHS for part in (8, 4, 2, 1)]


def tree_logps(model: Model, params: Any, trees: Sequence[Tree]) -> list[Float[np.ndarray, " K"]]:
    """Returns log π(completion | prompt) of every completion in nats, summed over the tokens that count.

    Args:
        model: a language model.
        params: its parameters.
        trees: prompts with any number of completions.

    Returns:
        One array for each tree. Up to rounding it does not depend on the other trees.

    Raises:
        UserError: if a tree is longer than the model or the longest row; the message has its number.
    """
    return _map_completions(_logps, model, params, trees)


def tree_scores(model: Model, params: Any, trees: Sequence[Tree]) -> list[Float[np.ndarray, " K"]]:
    """Returns a reward model's score of every completion, the mean of its heads. Otherwise as ``tree_logps``."""
    return _map_completions(_scores, model, params, trees)


def _map_completions(
    function: Callable[[Model, Any, Rows], Array], model: Model, params: Any, trees: Sequence[Tree]
) -> list[Float[np.ndarray, " K"]]:
    """Applies a jitted function of packed rows with values ``[R, E, K]``, and returns the values by tree."""
    longest = min(LENGTHS[-1], model.config.max_position_embeddings)
    for number, tree in enumerate(trees, start=1):
        if len(tree) > LENGTHS[-1] or len(tree.prompt) + max(map(len, tree.completions)) > longest:
            raise UserError(
                f"Example {number} has {len(tree)} tokens, and the model takes {longest}. Shorten or remove it."
            )
    result: list[Any] = [None] * len(trees)
    for count in sorted({len(tree.completions) for tree in trees}):  # one program for each K
        chosen = [i for i, tree in enumerate(trees) if len(tree.completions) == count]
        for start in range(0, len(chosen), CHUNK):
            part = chosen[start : start + CHUNK]
            indexed = attach([trees[i] for i in part], index=np.asarray(part, np.int32))
            packed = pack(indexed, shapes=SHAPES, num_completions=count)
            for m in range(packed.used):
                rows = jax.tree.map(lambda x, m=m: x[m], packed.rows)
                values = np.asarray(function(model, params, rows))
                used = rows.example_mask
                # Packing reorders examples; the index that each one carries restores their order.
                for index, value in zip(rows.extras["index"][used][:, 0], values[used], strict=True):
                    result[int(index)] = value
    return result


_logps = jax.jit(completion_logps, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _scores(model: Model, params: Any, rows: Rows) -> Float[Array, "R E K"]:
    return model.scores(params, rows).mean(axis=-1)
