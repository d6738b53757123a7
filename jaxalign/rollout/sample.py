"""Sampling of the next token: filters on the logits, and exact sampling in one pass over the vocabulary."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxalign.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are sampled. It is a static argument: each value compiles its own program.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: sample among the k most likely tokens only; 0 for all.
        top_p: sample among the most likely tokens that together reach this probability; 1 for all.
        min_p: sample among the tokens at least this fraction as likely as the most likely one; 0 for all.

    Raises:
        UserError: for a value out of its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        rules = {
            "temperature must be a finite number, 0 or more": 0 <= self.temperature < math.inf,
            "top_k must be 0 or more": self.top_k >= 0,
            "top_p must be above 0 and at most 1": 0 < self.top_p <= 1,
            "min_p must be 0 or more and at most 1": 0 <= self.min_p <= 1,
        }
        for rule, is_met in rules.items():
            if not is_met:
                raise UserError(f"{rule}, it is {getattr(self, rule.split()[0])}.")


def sample(
    logits: Float[Array, "N V"], keys: Key[Array, " N"], sampling: Sampling
) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
    """Returns a token for each row, and its log-probability under the untempered, unfiltered policy."""
    if sampling.temperature == 0:
        token = argmax(logits)
    else:
        token = sample_softmax(filter_logits(logits / sampling.temperature, sampling), keys)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return token, chosen - jax.nn.logsumexp(logits, axis=-1)


def filter_logits(logits: Float[Array, "N V"], sampling: Sampling) -> Float[Array, "N V"]:
    """Returns the logits, with -inf for the tokens that the filters remove.

    The filters are applied in turn. ``top_k`` keeps the k most likely tokens. ``top_p`` keeps the smallest set of most
    likely tokens whose probability reaches p, at least one (nucleus sampling, Holtzman et al. 2020, eq. 2). ``min_p``
    keeps the tokens with probability ≥ min_p · max (Nguyen et al. 2024, arXiv:2407.01082, section 3). All tokens that
    tie at a threshold are kept.
    """
    if sampling.top_k:
        kth = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits >= kth, logits, -jnp.inf)
    if sampling.top_p < 1:
        probabilities = jax.nn.softmax(logits, axis=-1)
        logits = jnp.where(probabilities >= _nucleus(probabilities, sampling.top_p), logits, -jnp.inf)
    if sampling.min_p:
        threshold = jnp.max(logits, axis=-1, keepdims=True) + math.log(sampling.min_p)
        logits = jnp.where(logits >= threshold, logits, -jnp.inf)
    return logits


def _nucleus(probabilities: Float[Array, "N V"], top_p: float) -> Float[Array, "N 1"]:
    """Returns the largest τ with Σ_{p_i ≥ τ} p_i ≥ top_p, exactly and without sorting.

    Non-negative floats have the same order as their bits, so the bits are bisected: one comparison and one sum per bit.
    On a CPU this takes a twentieth of the time of sorting a vocabulary of 49,152.
    """
    integer = jnp.int64 if probabilities.dtype == jnp.float64 else jnp.int32

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # the tokens from low up reach top_p, those from high up do not
        middle = low + (high - low) // 2
        tau = jax.lax.bitcast_convert_type(middle, probabilities.dtype)
        reached = jnp.sum(jnp.where(probabilities >= tau, probabilities, 0), axis=-1, keepdims=True) >= top_p
        return jnp.where(reached, middle, low), jnp.where(reached, high, middle)

    low = jnp.zeros((probabilities.shape[0], 1), integer)
    high = jax.lax.bitcast_convert_type(jnp.max(probabilities, axis=-1, keepdims=True), integer) + 1
    low, _ = jax.lax.fori_loop(0, jnp.iinfo(integer).bits, halve, (low, high))
    return jax.lax.bitcast_convert_type(low, probabilities.dtype)


def sample_softmax(logits: Float[Array, "N V"], keys: Key[Array, " N"]) -> Int[Array, " N"]:
    """Samples from softmax(logits): a block of the vocabulary, then a token in it, both with the Gumbel-max trick.

        argmax_b (logsumexp_{i∈b} l_i + g_b), then argmax_{i∈b} (l_i + g'_i), with g, g' ~ Gumbel(0, 1)

    The distribution is that of argmax_i (l_i + g_i), but a row needs about 2√V random numbers instead of V. For a
    vocabulary of 49,152, V random numbers cost as much as the model. As with the plain trick, rounding of the logits
    changes a token only at a near tie.
    """
    blocks = _blocks(logits)
    _, count, size = blocks.shape
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (count + size,), logits.dtype))(keys)
    block = jnp.argmax(jax.nn.logsumexp(blocks, axis=-1) + noise[:, :count], axis=-1)
    inner = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return (block * size + jnp.argmax(inner + noise[:, count:], axis=-1)).astype(jnp.int32)


def argmax(logits: Float[Array, "N V"]) -> Int[Array, " N"]:
    """Returns the index of each row's maximum, the first of equal ones.

    It takes the maximum of blocks first, because XLA's CPU argmax is slow on long rows.
    """
    blocks = _blocks(logits)
    block = jnp.argmax(jnp.max(blocks, axis=-1), axis=-1)
    inner = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return (block * blocks.shape[-1] + jnp.argmax(inner, axis=-1)).astype(jnp.int32)


def _blocks(logits: Float[Array, "N V"]) -> Float[Array, "N b V/b"]:
    """Splits the vocabulary into blocks of about √V tokens; the last one is filled up with -inf."""
    vocabulary = logits.shape[-1]
    size = 2 ** round(math.log2(vocabulary) / 2)
    logits = jnp.pad(logits, ((0, 0), (0, -vocabulary % size)), constant_values=-jnp.inf)
    return logits.reshape(logits.shape[0], -1, size)
