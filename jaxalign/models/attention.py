"""Attention over packed rows."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def attention(
    q: Float[Array, "R T H h"], k: Float[Array, "R S G h"], v: Float[Array, "R S G h"], seen: Bool[Array, "R T S"]
) -> Float[Array, "R T H h"]:
    """Computes softmax(q kᵀ / √h) v over the visible keys, with grouped queries.

    Scores and softmax are float32 or wider. H/G query heads share each key head. Each query must see at least one key.

    Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; Ainslie et al. 2023, arXiv:2305.13245.
    """
    # Not ``jax.nn.dot_product_attention``: it rounds float64 scores to float32.
    rows, length, heads, size = q.shape
    groups = k.shape[-2]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    einsum = functools.partial(jnp.einsum, preferred_element_type=wide)
    q = (q * size**-0.5).reshape(rows, length, groups, heads // groups, size)
    scores = jnp.where(seen[:, None, None], einsum("rtgqh,rsgh->rgqts", q, k), -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return einsum("rgqts,rsgh->rtgqh", weights, v).reshape(rows, length, heads, size).astype(v.dtype)
