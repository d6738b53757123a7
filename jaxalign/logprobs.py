"""Log-probabilities of tokens, from logits or directly from hidden states and the head, and estimators of the KL.

This module alone decides the precision: log-sum-exp runs in float32, or in float64 where the input is float64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxalign import _checks as check

T = TypeVar("T")
KL_ESTIMATORS = ("k1", "k2", "k3")


def token_logps(logits: Float[Array, "*B V"], targets: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Computes the log-probability of each target under its logits.

        z_target - log Σ_v exp z_v

    Args:
        logits: unnormalised log-probabilities, ``[..., V]``.
        targets: token ids in [0, V), ``[...]``; ids outside are clipped to the nearest one.

    Returns:
        log-probabilities in nats, ``[...]``, in float32 or wider.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> token_logps(jnp.zeros([3, 4]), jnp.array([0, 1, 2]))
    Array([-1.3862..., -1.3862..., -1.3862...], dtype=float32)
    """
    logits = check.to_float("logits", logits, "[..., V]")
    targets = check.to_indices("targets", targets, logits.shape[:-1], "logits without its last axis")
    logits = logits.astype(_wide(logits.dtype))
    targets = _in_vocabulary(targets, logits.shape[-1])
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def token_entropy(logits: Float[Array, "*B V"]) -> Float[Array, "*B"]:
    """Computes the entropy of the next token.

        -Σ_v p_v log p_v

    Args:
        logits: unnormalised log-probabilities, ``[..., V]``.

    Returns:
        entropies in nats, ``[...]``, in float32 or wider.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> token_entropy(jnp.zeros([1, 4]))
    Array([1.3862...], dtype=float32)
    """
    logits = check.to_float("logits", logits, "[..., V]")
    log_probs = jax.nn.log_softmax(logits.astype(_wide(logits.dtype)), axis=-1)
    # A logit of -inf excludes an entry, whose term 0 · -∞ would be NaN.
    return -jnp.sum(jnp.exp(log_probs) * jnp.where(log_probs > -jnp.inf, log_probs, 0), axis=-1)


def fused_token_logps(
    hidden: Float[Array, "*B D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "*B"],
    *,
    chunk_size: int = 8192,
    vocab_axis: int = 1,
) -> Float[Array, "*B"]:
    """Computes ``token_logps(hidden @ head, targets)`` without a (tokens × V) array, forward or backward.

    The forward pass scans the vocabulary in chunks with an online log-sum-exp. The backward pass computes each chunk's
    logits again. Memory is (tokens × ``chunk_size``) in addition to the head and its gradient.

    Products are in the type of ``hidden`` and ``head``, accumulated in float32 or wider. A head sharded over its
    vocabulary is not gathered. Pass leading axes as they are: under ``vmap`` each element would get its own gradient of
    the head. Forward-mode derivatives are not supported.

    Args:
        hidden: states that predict, ``[..., D]``.
        head: output matrix, ``[D, V]``, or ``[V, D]`` with ``vocab_axis=0``.
        targets: token ids in [0, V), ``[...]``; ids outside are clipped to the nearest one, as in ``token_logps``.
        chunk_size: number of vocabulary entries whose logits exist at a time (static).
        vocab_axis: 0 for a tied embedding ``[V, D]``, used without the transposed copy that ``embedding.T`` may cost.

    Returns:
        log-probabilities in nats, ``[...]``, in float32 or wider.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> hidden, head = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    >>> fused_token_logps(hidden, head, jnp.array([2]))
    Array([-0.4076...], dtype=float32)

    Source: Milakov & Gimelshein 2018, arXiv:1805.02867, alg. 3.
    """
    return _fused_logps(*_fused_arguments(hidden, head, targets, chunk_size, vocab_axis))


class TokenStatistics(NamedTuple):
    """Statistics of tokens that one pass over the vocabulary computes."""

    logps: Float[Array, "*B"]  # log p of the target, nats
    entropy: Float[Array, "*B"]  # -Σ_v p_v log p_v, nats
    log_sum_sq_probs: Float[Array, "*B"]  # log Σ_v p_v², an input of WPO's weights; without gradient


def fused_token_statistics(
    hidden: Float[Array, "*B D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "*B"],
    *,
    chunk_size: int = 8192,
    vocab_axis: int = 1,
) -> TokenStatistics:
    """Computes log-probabilities, entropies and log Σ p² of tokens in one pass over the vocabulary.

    Args:
        hidden: states that predict, ``[..., D]``.
        head: output matrix, ``[D, V]``, or ``[V, D]`` with ``vocab_axis=0``.
        targets: token ids, ``[...]``, as in ``fused_token_logps``.
        chunk_size: as in ``fused_token_logps``.
        vocab_axis: as in ``fused_token_logps``.

    Returns:
        a ``TokenStatistics`` of arrays ``[...]``; ``logps`` and ``entropy`` are differentiable.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> hidden, head = jnp.array([[1.0, 0.0]]), jnp.zeros([2, 4])
    >>> fused_token_statistics(hidden, head, jnp.array([2])).entropy
    Array([1.3862...], dtype=float32)
    """
    statistics = _fused_statistics(*_fused_arguments(hidden, head, targets, chunk_size, vocab_axis))
    return statistics._replace(log_sum_sq_probs=jax.lax.stop_gradient(statistics.log_sum_sq_probs))


def kl_estimate(logps: Float[Array, "*B"], ref_logps: Float[Array, "*B"], *, estimator: str) -> Float[Array, "*B"]:
    """Estimates KL(π ‖ π_ref) per token from tokens drawn from π.

        k1 = -r        k2 = r²/2        k3 = exp(r) - 1 - r        with r = ref_logps - logps

    ``k1`` and ``k3`` are unbiased; ``k2`` and ``k3`` are never negative. Only ``logps`` gets a gradient.

    Args:
        logps: log-probabilities of the tokens under the policy, nats, ``[...]``.
        ref_logps: the same under the reference; held constant.
        estimator: ``k1``, ``k2`` or ``k3``.

    Returns:
        estimates in nats, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape, or if the estimator is unknown; the message names it.

    >>> kl_estimate(jnp.array([-1.0]), jnp.array([-1.5]), estimator="k3")
    Array([0.1065...], dtype=float32)

    Source: Schulman 2020, http://joschu.net/blog/kl-approx.html.
    """
    logps, ref_logps = check.to_floats(logps=logps, ref_logps=ref_logps)
    check.one_of("estimator", estimator, KL_ESTIMATORS)
    r = jax.lax.stop_gradient(ref_logps) - logps
    if estimator == "k1":
        return -r
    if estimator == "k2":
        return r**2 / 2
    return jnp.expm1(r) - r


def _in_vocabulary(targets: Array, vocab_size: int) -> Array:
    """Clips ids to the vocabulary, so that value and gradient agree on ids outside of it."""
    return jnp.clip(targets.astype(jnp.int32), 0, vocab_size - 1)


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    """Returns float64 for float64, otherwise float32."""
    return jnp.promote_types(dtype, jnp.float32)


# A chunk is not a contiguous range of the vocabulary. It takes `width` neighbours from each of `lanes` equal parts: the
# head is viewed as [D, lanes, V / lanes] and sliced along its last axis. A mesh axis that splits the vocabulary then
# splits `lanes`. So every device works on every chunk, and slicing moves no data between devices.
LANES = 16


class _Chunking(NamedTuple):
    """Partition of the vocabulary into chunks; ``axis`` is the vocabulary's axis in the head."""

    axis: int
    lanes: int
    length: int  # of a lane
    width: int  # of a chunk, along a lane

    def view(self, head: Array) -> Array:
        """Returns the head as [D, lanes, length], or as [lanes, length, D] where the vocabulary comes first."""
        return head.reshape((-1, self.lanes, self.length) if self.axis else (self.lanes, self.length, -1))

    def take(self, view: Array, start: Array, width: int) -> Array:
        """Returns the chunk that begins at ``start`` in every lane, as [D, chunk] or [chunk, D]."""
        part = jax.lax.dynamic_slice_in_dim(view, start, width, axis=self.axis + 1)
        return part.reshape((-1, self.lanes * width) if self.axis else (self.lanes * width, -1))

    def put(self, view: Array, part: Array, start: Array, width: int) -> Array:
        """Writes a chunk back to where ``take`` reads it."""
        part = part.reshape((-1, self.lanes, width) if self.axis else (self.lanes, width, -1))
        return jax.lax.dynamic_update_slice_in_dim(view, part, start, axis=self.axis + 1)

    def ids(self, start: Array, width: int) -> Array:
        """Returns the vocabulary ids of a chunk, [lanes · width]."""
        return (jnp.arange(self.lanes)[:, None] * self.length + start + jnp.arange(width)).reshape(-1)

    def fold(self, step: Callable[[T, Array, int], T], carry: T) -> T:
        """Folds ``carry = step(carry, start, width)`` over all chunks; the first may be narrower."""
        # The narrow chunk comes first. After the loop, writing its part of the gradient would copy the whole gradient.
        rest = self.length % self.width
        if rest:
            carry = step(carry, jnp.asarray(0), rest)
        starts = jnp.arange(rest, self.length, self.width)
        return jax.lax.scan(lambda carry, start: (step(carry, start, self.width), None), carry, starts)[0]


def _chunking(vocab_size: int, axis: int, chunk_size: int) -> _Chunking:
    """Returns chunks of at most ``chunk_size`` entries; wide ones are a multiple of 128 along a lane."""
    lanes = math.gcd(vocab_size, LANES)
    while lanes > chunk_size:
        lanes //= 2
    length = vocab_size // lanes
    width = min(chunk_size // lanes, length)
    return _Chunking(axis, lanes, length, width - width % 128 if 128 < width < length else width)


def _matmul(spec: str, a: Array, b: Array) -> Array:
    """Multiplies in the type of the operands, and accumulates in float32 or wider."""
    return jnp.einsum(spec, a, b, preferred_element_type=_wide(a.dtype))


_Sums = tuple[Array, Array, Array, Array]


def _fused_arguments(
    hidden: Array, head: Array, targets: Array, chunk_size: int, vocab_axis: int
) -> tuple[Array, Array, Array, _Chunking]:
    """Checks the arguments and returns them, with states and head in one type, and the chunks."""
    hidden, head = check.to_float("hidden", hidden, "[..., D]"), check.to_float("head", head)
    check.one_of("vocab_axis", vocab_axis, (0, 1))
    if head.ndim != 2 or head.shape[1 - vocab_axis] != hidden.shape[-1]:
        wanted = "[D, V]" if vocab_axis else "[V, D]"
        raise ValueError(f"head must have shape {wanted} with hidden's D, {hidden.shape[-1]}, got {list(head.shape)}.")
    targets = check.to_indices("targets", targets, hidden.shape[:-1], "hidden without its last axis")
    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size must be a positive integer, got {chunk_size}.")
    dtype = jnp.promote_types(hidden.dtype, head.dtype)
    chunks = _chunking(head.shape[vocab_axis], vocab_axis, chunk_size)
    return hidden.astype(dtype), head.astype(dtype), _in_vocabulary(targets, head.shape[vocab_axis]), chunks


def _fused_forward(hidden: Array, head: Array, targets: Array, chunks: _Chunking) -> tuple[TokenStatistics, tuple]:
    view = chunks.view(head)
    to_logits = "...d,dc->...c" if chunks.axis else "...d,cd->...c"

    def step(carry: _Sums, start: Array, width: int) -> _Sums:
        # Maxima and sums per lane, not per token: with lanes on several devices the loop needs no communication.
        top, total, energy, squares = carry
        logits = _matmul(to_logits, hidden, chunks.take(view, start, width))
        logits = logits.reshape(*targets.shape, chunks.lanes, width)
        new_top = jnp.maximum(top, jnp.max(logits, axis=-1))
        rescale, mass = jnp.exp(top - new_top), jnp.exp(logits - new_top[..., None])
        total = total * rescale + jnp.sum(mass, axis=-1)
        energy = energy * rescale + jnp.sum(mass * logits, axis=-1)
        squares = squares * rescale**2 + jnp.sum(mass**2, axis=-1)
        return new_top, total, energy, squares

    zeros = jnp.zeros((*targets.shape, chunks.lanes), _wide(hidden.dtype))
    top, total, energy, squares = chunks.fold(step, (zeros - jnp.inf, zeros, zeros, zeros))
    highest = jnp.max(top, axis=-1)
    rescale = jnp.exp(top - highest[..., None])
    log_total = jnp.log(jnp.sum(total * rescale, axis=-1))
    log_normaliser = highest + log_total
    chosen = jnp.take(head, targets, axis=chunks.axis, mode="clip")
    chosen = _matmul("...d,d...->..." if chunks.axis else "...d,...d->...", hidden, chosen)
    statistics = TokenStatistics(
        logps=chosen - log_normaliser,
        entropy=log_normaliser - jnp.sum(energy * rescale, axis=-1) * jnp.exp(-log_total),
        log_sum_sq_probs=jnp.log(jnp.sum(squares * rescale**2, axis=-1)) - 2 * log_total,
    )
    return statistics, (hidden, head, targets, log_normaliser, statistics.entropy)


def _fused_backward(
    chunks: _Chunking, residuals: tuple, to_logps: Array, to_entropy: Array | None
) -> tuple[Array, Array, None]:
    """Computes the gradients to hidden and head chunk by chunk, through z = hidden @ head.

    ∂logp/∂z_v = 1[v = target] - p_v        ∂H/∂z_v = -p_v (log p_v + H)
    """
    hidden, head, targets, log_normaliser, entropy = residuals
    view = chunks.view(head)
    to_logits = "...d,dc->...c" if chunks.axis else "...d,cd->...c"
    to_hidden = "...c,dc->...d" if chunks.axis else "...c,cd->...d"
    to_head = "d...,...c->dc" if chunks.axis else "d...,...c->cd"
    hidden_t = jnp.moveaxis(hidden, -1, 0)  # transposed once, not in every product that contracts the tokens

    def step(carry: tuple[Array, Array], start: Array, width: int) -> tuple[Array, Array]:
        d_hidden, d_view = carry
        part = chunks.take(view, start, width)
        log_probs = _matmul(to_logits, hidden, part) - log_normaliser[..., None]
        hit = chunks.ids(start, width) == targets[..., None]
        d_logits = (hit - jnp.exp(log_probs)) * to_logps[..., None]
        if to_entropy is not None:
            d_logits -= jnp.exp(log_probs) * (log_probs + entropy[..., None]) * to_entropy[..., None]
        d_logits = d_logits.astype(hidden.dtype)
        d_part = _matmul(to_head, hidden_t, d_logits).astype(head.dtype)
        return d_hidden + _matmul(to_hidden, d_logits, part), chunks.put(d_view, d_part, start, width)

    d_hidden, d_view = chunks.fold(step, (jnp.zeros(hidden.shape, _wide(hidden.dtype)), jnp.zeros_like(view)))
    return d_hidden.astype(hidden.dtype), d_view.reshape(head.shape), None


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _fused_statistics(hidden: Array, head: Array, targets: Array, chunks: _Chunking) -> TokenStatistics:
    return _fused_forward(hidden, head, targets, chunks)[0]


def _statistics_backward(chunks: _Chunking, residuals: tuple, cotangents: TokenStatistics) -> tuple:
    return _fused_backward(chunks, residuals, cotangents.logps, cotangents.entropy)


_fused_statistics.defvjp(_fused_forward, _statistics_backward)


# Log-probabilities alone. The compiler drops the other sums of the forward pass, and the backward pass computes less.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _fused_logps(hidden: Array, head: Array, targets: Array, chunks: _Chunking) -> Array:
    return _fused_forward(hidden, head, targets, chunks)[0].logps


def _logps_forward(hidden: Array, head: Array, targets: Array, chunks: _Chunking) -> tuple[Array, tuple]:
    statistics, residuals = _fused_forward(hidden, head, targets, chunks)
    return statistics.logps, (*residuals[:-1], None)


_fused_logps.defvjp(_logps_forward, functools.partial(_fused_backward, to_entropy=None))
