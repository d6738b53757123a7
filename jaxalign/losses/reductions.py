"""Reductions of per-token losses to one number. In policy-gradient methods they are part of the algorithm.

==================  ==========================================================================================
GRPO                ``sequence_mean``: mean over sequences of the mean over each one's tokens
DAPO, BNPO          ``token_mean``: all tokens weigh the same
Dr. GRPO            ``fixed_length_mean``: tokens summed, over (sequences × a constant length)
LUSPO               ``sequence_sum``: mean over sequences of the sum over each one's tokens
==================  ==========================================================================================

DAPO counts the tokens of the whole batch, BNPO those of a microbatch. To accumulate over microbatches without changing
the result, compute ``…_weights`` of the whole batch's mask once, and sum ``weighted_sum(losses, weights)`` over the
microbatches. Sequences without a valid token (padding) are not counted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign import _checks as check

Mask = Bool[Array, "*B T"]


def weighted_sum(losses: Float[Array, "*B"], weights: Float[Array, "*B"]) -> Float[Array, ""]:
    """Sums w·x over the entries with w ≠ 0.

    Entries with w = 0 have no influence, even if they are NaN.

    Args:
        losses: x, any shape.
        weights: w, of the same shape.

    Returns:
        the sum, a scalar.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> weighted_sum(jnp.array([1.0, jnp.nan]), jnp.array([0.5, 0.0]))
    Array(0.5, dtype=float32)
    """
    losses, weights = check.to_floats(losses=losses, weights=weights)
    return jnp.sum(jnp.where(weights != 0, losses, 0) * weights)


def token_mean_weights(mask: Mask) -> Float[Array, "*B T"]:
    """Returns 1 / (number of valid tokens) on each valid token.

    Args:
        mask: True on valid tokens, ``[..., T]``.

    Returns:
        weights, ``[..., T]``, which sum to 1; 0 where masked.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> token_mean_weights(jnp.array([[True, False], [True, True]]))
    Array([[0.3333..., 0.        ],
           [0.3333..., 0.3333...]], dtype=float32)
    """
    return _share(_mask(mask), axis=None)


def sequence_sum_weights(mask: Mask) -> Float[Array, "*B T"]:
    """Returns 1 / (number of sequences) on each valid token.

    Args:
        mask: True on valid tokens, ``[..., T]``.

    Returns:
        weights, ``[..., T]``; 0 where masked.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> sequence_sum_weights(jnp.array([[True, False], [True, True]]))
    Array([[0.5, 0. ],
           [0.5, 0.5]], dtype=float32)
    """
    mask = _mask(mask)
    return mask / jnp.maximum(jnp.sum(jnp.any(mask, axis=-1)), 1)


def sequence_mean_weights(mask: Mask) -> Float[Array, "*B T"]:
    """Returns 1 / (number of sequences × the sequence's number of tokens) on each valid token.

    Args:
        mask: True on valid tokens, ``[..., T]``.

    Returns:
        weights, ``[..., T]``, which sum to 1; 0 where masked.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> sequence_mean_weights(jnp.array([[True, False], [True, True]]))
    Array([[0.5 , 0.  ],
           [0.25, 0.25]], dtype=float32)
    """
    return sequence_sum_weights(mask) * _share(_mask(mask), axis=-1)


def fixed_length_mean_weights(mask: Mask, *, length: float) -> Float[Array, "*B T"]:
    """Returns 1 / (number of sequences × ``length``) on each valid token.

    Args:
        mask: True on valid tokens, ``[..., T]``.
        length: constant number of tokens.

    Returns:
        weights, ``[..., T]``; 0 where masked.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> fixed_length_mean_weights(jnp.array([[True, False], [True, True]]), length=4)
    Array([[0.125, 0.   ],
           [0.125, 0.125]], dtype=float32)
    """
    return sequence_sum_weights(mask) / length


def token_mean(losses: Float[Array, "*B T"], mask: Mask) -> Float[Array, ""]:
    """Averages over valid tokens, as DAPO does.

        Σ x / Σ mask

    Args:
        losses: x, ``[..., T]``.
        mask: True on valid tokens, ``[..., T]``.

    Returns:
        a scalar, 0 if no token counts.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> token_mean(jnp.array([[4.0, 9.0], [1.0, 1.0]]), jnp.array([[True, False], [True, True]]))
    Array(2., dtype=float32)

    Source: Yu et al. 2025 (DAPO), arXiv:2503.14476, eq. 8.
    """
    return _reduce(losses, mask, token_mean_weights)


def sequence_mean(losses: Float[Array, "*B T"], mask: Mask) -> Float[Array, ""]:
    """Averages over sequences the mean over each one's tokens, as GRPO does.

        mean_i Σ_t x_it / T_i

    Args:
        losses: x, ``[..., T]``, a sequence per row.
        mask: True on valid tokens, ``[..., T]``.

    Returns:
        a scalar, 0 if no token counts.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> sequence_mean(jnp.array([[4.0, 9.0], [1.0, 1.0]]), jnp.array([[True, False], [True, True]]))
    Array(2.5, dtype=float32)

    Source: Shao et al. 2024 (GRPO), arXiv:2402.03300, eq. 3.
    """
    return _reduce(losses, mask, sequence_mean_weights)


def sequence_sum(losses: Float[Array, "*B T"], mask: Mask) -> Float[Array, ""]:
    """Averages over sequences the sum over each one's tokens, as LUSPO does.

        mean_i Σ_t x_it

    Args:
        losses: x, ``[..., T]``, a sequence per row.
        mask: True on valid tokens, ``[..., T]``.

    Returns:
        a scalar, 0 if no token counts.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> sequence_sum(jnp.array([[4.0, 9.0], [1.0, 1.0]]), jnp.array([[True, False], [True, True]]))
    Array(3., dtype=float32)

    Source: Liu et al. 2026 (LUSPO), arXiv:2602.05261.
    """
    return _reduce(losses, mask, sequence_sum_weights)


def fixed_length_mean(losses: Float[Array, "*B T"], mask: Mask, *, length: float) -> Float[Array, ""]:
    """Sums over tokens and divides by (sequences × a constant length), as Dr. GRPO does.

        mean_i Σ_t x_it / length

    Args:
        losses: x, ``[..., T]``, a sequence per row.
        mask: True on valid tokens, ``[..., T]``.
        length: constant number of tokens, for example that of the longest completion allowed.

    Returns:
        a scalar, 0 if no token counts.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> fixed_length_mean(jnp.array([[4.0, 9.0], [1.0, 1.0]]), jnp.array([[True, False], [True, True]]), length=4)
    Array(0.75, dtype=float32)

    Source: Liu et al. 2025 (Dr. GRPO), arXiv:2503.20783.
    """
    return _reduce(losses, mask, functools.partial(fixed_length_mean_weights, length=length))


def _mask(mask: Mask) -> Array:
    """Returns a checked mask."""
    mask = check.to_array("mask", mask)
    check.has_axis("mask", mask, "[..., T]")
    return check.to_mask("mask", mask, mask.shape, "mask")


def _reduce(losses: Float[Array, "*B T"], mask: Mask, weights: Callable[[Array], Array]) -> Float[Array, ""]:
    """Sums losses with the weights of their mask."""
    losses = check.to_float("losses", losses)
    mask = check.to_mask("mask", mask, losses.shape, "losses")
    return weighted_sum(losses, weights(mask).astype(losses.dtype))


def _share(mask: Array, axis: int | None) -> Array:
    """Divides a mask by its number of True entries, at least 1."""
    return mask / jnp.maximum(jnp.sum(mask, axis=axis, keepdims=True), 1)
