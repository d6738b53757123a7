"""Log-probabilities of tokens, from logits or straight from hidden states and the head, and the KL estimators.

This is the one place where precision is decided: log-sum-exp runs in float32, or in float64 where the input is.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxalign import _checks as check

KL_ESTIMATORS = ("k1", "k2", "k3")


def token_logps(logits: Float[Array, "*B V"], targets: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Log-probability of each target under its logits: z_target - log Σ_v exp z_v.

    Args:
      logits: unnormalised log-probabilities, ``[..., V]``.
      targets: token ids, ``[...]``, in [0, V).
    Returns:
      log-probabilities in nats, ``[...]``, in float32 or wider.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> token_logps(jnp.zeros([3, 4]), jnp.array([0, 1, 2]))
    Array([-1.3862..., -1.3862..., -1.3862...], dtype=float32)
    """
    logits = check.to_float("logits", logits)
    check.at_least_axes("logits", logits, 1, "[..., V]")
    targets = check.to_indices("targets", targets, logits.shape[:-1], "logits without its last axis")
    logits = logits.astype(_wide(logits.dtype))
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1, mode="clip")[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def fused_token_logps(
    hidden: Float[Array, "*B D"], head: Float[Array, "D V"], targets: Int[Array, "*B"], *, chunk_size: int = 8192
) -> Float[Array, "*B"]:
    """``token_logps(hidden @ head, targets)`` without an array of (tokens × V), forward or backward.

    The vocabulary is scanned in chunks with an online log-sum-exp (Milakov & Gimelshein 2018, arXiv:1805.02867, alg.
    3); the backward pass computes each chunk's logits again, so that memory is (tokens × ``chunk_size``) beside the
    head and its gradient. Products are in the type of ``hidden`` and ``head``, accumulated in float32 or wider. A head
    sharded over its vocabulary stays where it is. Leading axes need no ``vmap``, which would make one gradient of the
    head for each element.

    Args:
      hidden: states that predict, ``[..., D]``.
      head: output matrix, ``[D, V]``; a tied one is ``embedding.T``.
      targets: token ids, ``[...]``, in [0, V); any valid id in slots that are masked later.
      chunk_size: logits of this many vocabulary entries exist at a time (static).
    Returns:
      log-probabilities in nats, ``[...]``, in float32 or wider.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> hidden, head = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    >>> fused_token_logps(hidden, head, jnp.array([2]))
    Array([-0.4076...], dtype=float32)
    """
    hidden, head = check.to_float("hidden", hidden), check.to_float("head", head)
    check.at_least_axes("hidden", hidden, 1, "[..., D]")
    if head.ndim != 2 or head.shape[0] != hidden.shape[-1]:
        raise ValueError(f"head must have shape [D, V] with D = {hidden.shape[-1]} as hidden, got {list(head.shape)}.")
    targets = check.to_indices("targets", targets, hidden.shape[:-1], "hidden without its last axis")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be positive, got {chunk_size}.")
    dtype = jnp.promote_types(hidden.dtype, head.dtype)
    return _fused(hidden.astype(dtype), head.astype(dtype), targets, _chunking(head.shape[1], chunk_size))


def kl_estimate(logps: Float[Array, "*B"], ref_logps: Float[Array, "*B"], *, estimator: str) -> Float[Array, "*B"]:
    """Per-token estimate of KL(π ‖ π_ref) from tokens drawn from π; with r = ref_logps - logps::

        k1 = -r          k2 = r²/2          k3 = exp(r) - 1 - r

    (Schulman 2020, http://joschu.net/blog/kl-approx.html.) ``k1`` and ``k3`` are unbiased, ``k2`` and ``k3`` never
    negative. Differentiable with respect to ``logps``; ``ref_logps`` is a constant.

    Args:
      logps: log-probs of the tokens under the policy, nats.
      ref_logps: the same under the reference.
      estimator: ``k1``, ``k2`` or ``k3``.
    Returns:
      the estimates in nats, of the same shape.
    Raises:
      TypeError, ValueError: for a wrong type, shape or estimator, naming the argument.

    >>> kl_estimate(jnp.array([-1.0]), jnp.array([-1.5]), estimator="k3")
    Array([0.1065...], dtype=float32)
    """
    logps, ref_logps = check.real(logps=logps, ref_logps=ref_logps)
    check.one_of("estimator", estimator, KL_ESTIMATORS)
    r = jax.lax.stop_gradient(ref_logps) - logps
    if estimator == "k1":
        return -r
    if estimator == "k2":
        return r**2 / 2
    return jnp.expm1(r) - r


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    """float32, or float64 where the input is."""
    return jnp.promote_types(dtype, jnp.float32)


# A chunk is not a contiguous range of the vocabulary but `width` neighbours from each of `lanes` equal parts of it:
# head viewed as [D, lanes, V / lanes], sliced along the last axis. So a mesh axis that splits the vocabulary splits
# `lanes`, every device works on every chunk, and slicing moves nothing between devices.
LANES = 64


def _chunking(vocab_size: int, chunk_size: int) -> tuple[int, int]:
    """(lanes, width) of a chunk of at most ``chunk_size`` entries; lanes divide the vocabulary, width need not."""
    lanes = math.gcd(vocab_size, LANES)
    while lanes > chunk_size:
        lanes //= 2
    width = min(chunk_size // lanes, vocab_size // lanes)
    return lanes, width - width % 128 if width > 128 else width


def _chunk_starts(length: int, width: int) -> Array:
    """First entries of the chunks of a lane; the last chunk is moved back to end with the lane, and overlaps."""
    return jnp.minimum(jnp.arange(0, length, width), length - width)


def _chunk_logits(hidden: Array, lanes: Array, start: Array, width: int) -> tuple[Array, Array]:
    """Logits [..., lanes, width] of the chunk at ``start`` of each lane, and its part of the head [D, lanes, width]."""
    part = jax.lax.dynamic_slice_in_dim(lanes, start, width, axis=2)
    logits = jnp.einsum("...d,dlw->...lw", hidden, part, preferred_element_type=_wide(hidden.dtype))
    return logits, part


def _ids(num_lanes: int, length: int, start: Array, width: int) -> Array:
    """Vocabulary ids of a chunk, [lanes, width]."""
    return jnp.arange(num_lanes)[:, None] * length + start + jnp.arange(width)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _fused(hidden: Array, head: Array, targets: Array, chunking: tuple[int, int]) -> Array:
    return _fused_forward(hidden, head, targets, chunking)[0]


def _fused_forward(hidden: Array, head: Array, targets: Array, chunking: tuple[int, int]) -> tuple[Array, tuple]:
    num_lanes, width = chunking
    length = head.shape[1] // num_lanes
    lanes = head.reshape(-1, num_lanes, length)
    starts = _chunk_starts(length, width)

    def step(carry: tuple[Array, Array, Array], index: Array) -> tuple[tuple[Array, Array, Array], None]:
        # Maxima and sums per lane, not per token: with lanes on several devices the loop needs no communication.
        top, total, chosen = carry
        start = starts[index]
        logits, _ = _chunk_logits(hidden, lanes, start, width)
        hit = _ids(num_lanes, length, start, width) == targets[..., None, None]
        fresh = start + jnp.arange(width) >= index * width
        chosen += jnp.sum(jnp.where(hit & fresh, logits, 0), axis=-1)
        logits = jnp.where(fresh, logits, -jnp.inf)
        new_top = jnp.maximum(top, jnp.max(logits, axis=-1))
        total = total * jnp.exp(top - new_top) + jnp.sum(jnp.exp(logits - new_top[..., None]), axis=-1)
        return (new_top, total, chosen), None

    zeros = jnp.zeros((*targets.shape, num_lanes), _wide(hidden.dtype))
    (top, total, chosen), _ = jax.lax.scan(step, (zeros - jnp.inf, zeros, zeros), jnp.arange(starts.size))
    log_normaliser = jax.nn.logsumexp(top + jnp.log(total), axis=-1)
    return jnp.sum(chosen, axis=-1) - log_normaliser, (hidden, head, targets, log_normaliser)


def _fused_backward(chunking: tuple[int, int], residuals: tuple, cotangent: Array) -> tuple[Array, Array, None]:
    """∂logp/∂z = 1[v = target] - p_v, chunk by chunk, through logits = hidden @ head."""
    hidden, head, targets, log_normaliser = residuals
    num_lanes, width = chunking
    length = head.shape[1] // num_lanes
    lanes = head.reshape(-1, num_lanes, length)
    starts = _chunk_starts(length, width)
    wide = _wide(hidden.dtype)

    def step(carry: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], None]:
        d_hidden, d_lanes = carry
        start = starts[index]
        logits, part = _chunk_logits(hidden, lanes, start, width)
        hit = _ids(num_lanes, length, start, width) == targets[..., None, None]
        d_logits = (hit - jnp.exp(logits - log_normaliser[..., None, None])) * cotangent[..., None, None]
        d_logits = d_logits.astype(hidden.dtype)
        # The overlap of the last chunk is written a second time with the same values, but may be added only once.
        d_part = jnp.einsum("...d,...lw->dlw", hidden, d_logits, preferred_element_type=wide).astype(head.dtype)
        d_lanes = jax.lax.dynamic_update_slice_in_dim(d_lanes, d_part, start, axis=2)
        fresh = start + jnp.arange(width) >= index * width
        part = jnp.where(fresh, part, 0)
        d_hidden += jnp.einsum("...lw,dlw->...d", d_logits, part, preferred_element_type=wide)
        return (d_hidden, d_lanes), None

    init = (jnp.zeros(hidden.shape, wide), jnp.zeros_like(lanes))
    (d_hidden, d_lanes), _ = jax.lax.scan(step, init, jnp.arange(starts.size))
    return d_hidden.astype(hidden.dtype), d_lanes.reshape(head.shape), None


_fused.defvjp(_fused_forward, _fused_backward)
