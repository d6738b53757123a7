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
    """Returns a tree for each prompt, with its K completions and their log-probs when sampled (``old_logps``).

    Every sampled token counts, including the end-of-sequence token. In packed rows ``extras["old_logps"]`` is [R, S],
    in nats, for comparison with ``model.token_logps(params, rows)`` of later parameters.

    Args:
        prompts: B prompts, without padding.
        rollout: result of ``generate`` for them, B·K completions.
        num_completions: K.
        **extras: inputs per completion, each [B·K], such as scores.

    Raises:
        ValueError: if the rollout or an extra does not have K completions of every prompt.
    """
    tokens, mask, logps = (np.asarray(x) for x in rollout)
    values: dict[str, Any] = {name: np.asarray(value) for name, value in extras.items()}
    for name, value in {"rollout": tokens, **values}.items():
        if len(value) != len(prompts) * num_completions:
            raise ValueError(
                f"{name} has {len(value)} completions. Give {num_completions} for each of the {len(prompts)} prompts."
            )
    return [
        Tree.of(
            prompt,
            [tokens[row][mask[row]] for row in rows],
            token_extras={"old_logps": [logps[row][mask[row]] for row in rows]},
            **{name: value[rows] for name, value in values.items()},
        )
        for prompt, rows in zip(prompts, np.arange(len(tokens)).reshape(-1, num_completions), strict=True)
    ]
