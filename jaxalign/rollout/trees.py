"""Rollouts as training examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxalign.data.trees import Tree
from jaxalign.rollout.generate import Rollout


def rollout_trees(
    prompts: Sequence[Sequence[int] | Int[np.ndarray, " P"]], rollout: Rollout, num_completions: int, **extras: Any
) -> list[Tree]:
    """One tree for each prompt, with its K completions and the log-probs they were drawn with (``old_logps``).

    Every drawn token counts, the end-of-sequence token too. Packed, ``rows.extras["old_logps"]`` is [R, S], nats, to
    compare with ``model.token_logps(params, rows)`` of later parameters.

    Args:
        prompts: B prompts, without padding.
        rollout: what ``generate`` made of them, B·K completions.
        num_completions: K.
        extras: per-completion inputs, each [B·K] (scores, say).

    Raises:
        ValueError: if the rollout does not hold K completions of every prompt, or an extra not one value of each.
    """
    tokens, mask, logps = (np.asarray(x) for x in rollout)
    sizes = {"rollout": len(tokens), **{name: len(value) for name, value in extras.items()}}
    for name, size in sizes.items():
        if size != len(prompts) * num_completions:
            raise ValueError(f"{name} has {size} completions, {len(prompts)} prompts × {num_completions} are wanted")
    values: dict[str, Any] = {name: np.asarray(value) for name, value in extras.items()}
    trees = []
    for number, prompt in enumerate(prompts):
        rows = np.arange(number * num_completions, (number + 1) * num_completions)
        trees.append(
            Tree.of(
                prompt,
                [tokens[row][mask[row]] for row in rows],
                token_extras={"old_logps": [logps[row][mask[row]] for row in rows]},
                **{name: value[rows] for name, value in values.items()},
            )
        )
    return trees
