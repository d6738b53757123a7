"""Combines several reward heads into one score, against over-optimisation of any single one."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def mean(scores: Float[Array, "*B M"]) -> Float[Array, "*B"]:
    """Returns the average of the heads: (1/M) Σ_m r_m.

    Source: Coste et al. 2023, arXiv:2310.02743, "mean optimization".

    >>> mean(jnp.array([[1.0, 3.0]]))
    Array([2.], dtype=float32)
    """
    return jnp.mean(scores, axis=-1)


def minimum(scores: Float[Array, "*B M"]) -> Float[Array, "*B"]:
    """Returns the lowest score of the heads: min_m r_m.

    Source: Coste et al. 2023, arXiv:2310.02743, "worst-case optimization".

    >>> minimum(jnp.array([[1.0, 3.0]]))
    Array([1.], dtype=float32)
    """
    return jnp.min(scores, axis=-1)


def uncertainty_weighted(scores: Float[Array, "*B M"], *, weight: float) -> Float[Array, "*B"]:
    """Returns the average minus the weighted variance of the heads: mean_m r_m - λ (1/M) Σ_m (r_m - mean)².

    Source: Coste et al. 2023, arXiv:2310.02743, "uncertainty-weighted optimization".

    Args:
        scores: of M heads, ``[..., M]``.
        weight: λ; 0 is ``mean``.

    >>> uncertainty_weighted(jnp.array([[1.0, 3.0]]), weight=0.5)
    Array([1.5], dtype=float32)
    """
    return jnp.mean(scores, axis=-1) - weight * jnp.var(scores, axis=-1)
