"""Rows of packed prompt trees, and which token may attend to which.

A *tree* is a prompt followed directly by its K completions. Several trees share a row::

    row        the  sky  is   blue  EOS  a  lie  EOS   ·    ·
    branch      0    0    0    1     1   2   2    2    0    0     0 prompt, 1..K completions
    position    0    1    2    3     4   3   4    5    0    0     distance from the start of the text
    example     0    0    0    0     0   0   0    0   -1   -1     slot within the row, -1 padding

Indices are relative to a row, so gathers and sums need no communication when rows are sharded.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Arrays = Any  # NumPy while packed on the host, jax.Array on the device


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """A batch of packed prompt trees: R rows, T columns, S target slots, E example slots, K completions a tree.

    Every field may have extra leading axes (microbatches). ``extras`` contains what a method adds: per-token inputs
    ``[R, S]`` and per-completion inputs ``[R, E, K]``.
    """

    tokens: Int[Arrays, "*m R T"]  # token ids, 0 where padding
    branch: Int[Arrays, "*m R T"]  # 0 prompt, 1..K completions
    position: Int[Arrays, "*m R T"]  # place within the text the token belongs to
    example: Int[Arrays, "*m R T"]  # tree slot within the row, -1 where padding
    source: Int[Arrays, "*m R S"]  # column whose state predicts the target (the prompt's last for a completion's first)
    target: Int[Arrays, "*m R S"]  # the token id to predict
    owner: Int[Arrays, "*m R S"]  # example·K + branch - 1, or -1 where the slot is unused
    mask: Bool[Arrays, "*m R S"]  # True if the target counts
    last: Int[Arrays, "*m R E K"]  # column of each completion's last token
    example_mask: Bool[Arrays, "*m R E"]  # example slots in use
    extras: dict[str, Any] = dataclasses.field(default_factory=dict)


def visible(
    branch: Int[Array, "R T"], position: Int[Array, "R T"], example: Int[Array, "R T"], window: int | None = None
) -> Bool[Array, "R T T"]:
    """Returns the attention mask: True where a query (middle axis) may attend to a key (last axis).

    A key is visible if it belongs to the same example, does not come after the query, and is in the prompt or in the
    query's own branch. A sliding window counts positions, because columns would count sibling completions.

    Args:
        branch: 0 prompt, 1..K completions.
        position: distance from the start of the text.
        example: slot within the row, -1 padding. Padding attends to itself alone, so that no softmax is empty.
        window: a key must be fewer than this many positions back; by default any number.

    Returns:
        the mask, ``[R, T, T]``.
    """
    column = jnp.arange(branch.shape[-1])
    causal = column[None, :] <= column[:, None]
    same_text = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    together = (example[:, None, :] == example[:, :, None]) & (example[:, :, None] >= 0)
    allowed = causal & same_text & together
    if window is not None:
        allowed &= position[:, :, None] - position[:, None, :] < window
    return allowed | jnp.eye(branch.shape[-1], dtype=bool)


def completion_sums(values: Float[Array, "R S"], rows: Rows) -> Float[Array, "R E K"]:
    """Returns each completion's sum over its target slots; of token log-probs, log π(completion | prompt) in nats.

    out[r, e, k] = Σ_{s: owner[r, s] = e·K + k} values[r, s]
    """
    num_examples, num_completions = rows.last.shape[-2:]
    # A one-hot sum instead of a scatter: rows stay independent under sharding, and NaN in unused slots has no effect.
    hit = rows.owner[..., None] == jnp.arange(num_examples * num_completions)
    sums = jnp.sum(jnp.where(hit, values[..., None], 0), axis=-2)
    return sums.reshape(*values.shape[:-1], num_examples, num_completions)


def completion_lengths(rows: Rows) -> Float[Array, "R E K"]:
    """Returns the number of each completion's tokens that count."""
    return completion_sums(rows.mask.astype(jnp.result_type(float)), rows)


def completion_mask(rows: Rows) -> Bool[Array, "R E K"]:
    """Returns True for completions that exist, which are those with target slots."""
    return completion_sums(jnp.ones(rows.owner.shape), rows) > 0


def take_by_owner(per_completion: Float[Array, "R E K"], owner: Int[Array, "R S"]) -> Float[Array, "R S"]:
    """Returns each slot's value of its completion, 0 in unused slots.

    out[r, s] = per_completion[r, owner[r, s]]
    """
    flat = per_completion.reshape(*per_completion.shape[:-2], -1)
    taken = jnp.take_along_axis(flat, jnp.maximum(owner, 0), axis=-1)
    return jnp.where(owner >= 0, taken, 0)


def gather_columns(hidden: Float[Array, "R T D"], columns: Int[Array, "R S"]) -> Float[Array, "R S D"]:
    """Gathers states at columns of each row.

    out[r, s] = hidden[r, columns[r, s]]
    """
    return jnp.take_along_axis(hidden, columns[..., None], axis=1, mode="clip")
