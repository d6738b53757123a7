"""Inputs and weights of preference losses: sums and averages of log-probabilities, LD-DPO's sums, WPO's weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxalign import _checks as check


def sum_logps(logps: Float[Array, "*B T"], mask: Bool[Array, "*B T"]) -> Float[Array, "*B"]:
    """Sums each completion's log-probabilities over its tokens, as ``dpo`` and most of its relatives expect.

        Σ_t log π_t

    Args:
        logps: log-probabilities of a completion's tokens, nats, ``[..., T]``.
        mask: True on the completion's tokens, ``[..., T]``.

    Returns:
        sums in nats, ``[...]``; 0 where no token counts.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> sum_logps(jnp.array([[-1.0, -2.0, -9.0]]), jnp.array([[True, True, False]]))
    Array([-3.], dtype=float32)
    """
    logps, mask = _masked(logps, mask)
    return jnp.sum(logps, axis=-1)


def average_logps(logps: Float[Array, "*B T"], mask: Bool[Array, "*B T"]) -> Float[Array, "*B"]:
    """Averages each completion's log-probabilities over its tokens, as ``ipo``, ``simpo`` and ``orpo`` expect.

        Σ_t log π_t / T

    Args:
        logps: log-probabilities of a completion's tokens, nats, ``[..., T]``.
        mask: True on the completion's tokens, ``[..., T]``.

    Returns:
        means in nats per token, ``[...]``; 0 where no token counts.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> average_logps(jnp.array([[-1.0, -2.0, -9.0]]), jnp.array([[True, True, False]]))
    Array([-1.5], dtype=float32)
    """
    return masked_mean(*_masked(logps, mask))


def ld_logps(
    logps: Float[Array, "*B T"], mask: Bool[Array, "*B T"], shared_length: Int[Array, "*B"], *, alpha: float
) -> Float[Array, "*B"]:
    """Computes LD-DPO's length-desensitised sums of log-probabilities, an input of ``dpo``.

        Σ_{t ≤ l} log π_t + α Σ_{t > l} log π_t

    l is the number of tokens of the pair's shorter completion. α = 1 is the plain sum.

    Args:
        logps: log-probabilities of a completion's tokens, nats, ``[..., T]``.
        mask: True on the completion's tokens, ``[..., T]``.
        shared_length: l, ``[...]``.
        alpha: α, weight of the tokens beyond l.

    Returns:
        sums in nats, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> ld_logps(jnp.array([[-1.0, -2.0, -4.0]]), jnp.array([[True, True, True]]), jnp.array([2]), alpha=0.5)
    Array([-5.], dtype=float32)

    Source: Liu et al. 2024, arXiv:2409.06411.
    """
    logps, mask = _masked(logps, mask)
    shared_length = check.to_indices("shared_length", shared_length, logps.shape[:-1], "logps without its last axis")
    shared = jnp.cumsum(mask, axis=-1) <= shared_length[..., None]
    return jnp.sum(jnp.where(shared, logps, alpha * logps), axis=-1)


def wpo_weights(
    logps: Float[Array, "*B T"], mask: Bool[Array, "*B T"], log_sum_sq_probs: Float[Array, "*B T"] | None = None
) -> Float[Array, "*B"]:
    """Computes WPO's weight of a completion, which measures how on-policy it is.

        exp(mean_t [log π_t - log Σ_v π_v²])

    Multiply a pair's loss by the weights of both its completions. Without ``log_sum_sq_probs`` the weight is exp(mean_t
    log π_t).

    Args:
        logps: of a completion's tokens under the policy, nats, ``[..., T]``.
        mask: True on the completion's tokens, ``[..., T]``.
        log_sum_sq_probs: log Σ_v π_v² at each token, ``[..., T]``, from ``jaxalign.logprobs.fused_token_statistics``.

    Returns:
        weights, ``[...]``, without gradient; 1 where no token counts.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> wpo_weights(jnp.log(jnp.array([[0.5, 0.125]])), jnp.array([[True, True]]))
    Array([0.25], dtype=float32)

    Source: Zhou et al. 2024, arXiv:2406.11827, eq. 2, and its sampled alignment.
    """
    logps, mask = _masked(logps, mask)
    if log_sum_sq_probs is not None:
        log_sum_sq_probs = check.to_float("log_sum_sq_probs", log_sum_sq_probs)
        check.same_shape("log_sum_sq_probs", log_sum_sq_probs, logps.shape, "logps")
        logps = logps - jnp.where(mask, log_sum_sq_probs, 0)
    return jnp.exp(average_logps(jax.lax.stop_gradient(logps), mask))


def masked_mean(x: Float[Array, "*B T"], mask: Bool[Array, "*B T"]) -> Float[Array, "*B"]:
    """Averages x, which must be 0 where masked, over the last axis; 0 where no entry counts.

    >>> masked_mean(jnp.array([[2.0, 4.0, 0.0]]), jnp.array([[True, True, False]]))
    Array([3.], dtype=float32)
    """
    return jnp.sum(x, axis=-1) / jnp.maximum(jnp.sum(mask, axis=-1), 1).astype(x.dtype)


def _masked(logps: Array, mask: Array) -> tuple[Array, Array]:
    """Checks the arguments and returns (logps, mask), with 0 in masked slots."""
    logps = check.to_float("logps", logps, "[..., T]")
    mask = check.to_mask("mask", mask, logps.shape, "logps")
    return jnp.where(mask, logps, 0), mask
