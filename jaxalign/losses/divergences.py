"""Scores of f-divergences between a policy and its reference, as functions of the log-ratio h = log π - log π_ref.

The score is f'(exp h) of D_f(π ‖ π_ref), up to an additive constant that cancels between chosen and rejected. β times
the score is the implicit reward of f-DPO. Pass one as ``divergence`` to ``dpo`` and its relatives.

Source: Wang et al. 2023, arXiv:2309.16240, table 1.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax.nn import log_sigmoid
from jaxtyping import Array, Float

from jaxalign import _checks as check


def reverse_kl(log_ratio: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Returns the score of KL(π ‖ π_ref), the default divergence.

        h

    Args:
        log_ratio: h in nats, ``[...]``.

    Returns:
        the score, ``[...]``.

    >>> reverse_kl(jnp.array([0.5]))
    Array([0.5], dtype=float32)

    Source: Wang et al. 2023, arXiv:2309.16240, table 1.
    """
    return check.to_float("log_ratio", log_ratio)


def forward_kl(log_ratio: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Returns the score of KL(π_ref ‖ π).

        1 - exp(-h)

    The exponent is cut at 80 in float32 and at 700 in float64.

    Args:
        log_ratio: h in nats, ``[...]``.

    Returns:
        the score, ``[...]``.

    >>> forward_kl(jnp.array([0.5]))
    Array([0.3934...], dtype=float32)

    Source: Wang et al. 2023, arXiv:2309.16240, table 1.
    """
    return -bounded_expm1(-check.to_float("log_ratio", log_ratio))


def jensen_shannon(log_ratio: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Returns the score of the Jensen-Shannon divergence.

        log 2 + log σ(h)

    Args:
        log_ratio: h in nats, ``[...]``.

    Returns:
        the score, ``[...]``, below log 2.

    >>> jensen_shannon(jnp.array([0.5]))
    Array([0.2190...], dtype=float32)

    Source: Wang et al. 2023, arXiv:2309.16240, table 1.
    """
    return math.log(2) + log_sigmoid(check.to_float("log_ratio", log_ratio))


def alpha_divergence(log_ratio: Float[Array, "*B"], *, alpha: float) -> Float[Array, "*B"]:
    """Returns the score of the α-divergence.

        (exp((α-1) h) - 1) / (α-1)

    At α = 1 it is its limit, reverse KL, and at α = 0 forward KL. The exponent is cut as in ``forward_kl``. Pass
    ``functools.partial(alpha_divergence, alpha=0.5)`` as a ``divergence``.

    Args:
        log_ratio: h in nats, ``[...]``.
        alpha: α, a Python number.

    Returns:
        the score, ``[...]``.

    >>> alpha_divergence(jnp.array([0.5]), alpha=0.5)
    Array([0.4423...], dtype=float32)

    Source: Wang et al. 2023, arXiv:2309.16240, table 1 (its α is 1 - α here).
    """
    log_ratio = check.to_float("log_ratio", log_ratio)
    order = alpha - 1
    if order == 0:
        return log_ratio
    exponent, largest = order * log_ratio, largest_exponent(log_ratio.dtype)
    # The constant beyond the cut is selected last. Otherwise the compiler may fuse the division into the difference of
    # chosen and rejected scores, and two equal scores would differ by a rounding.
    return jnp.where(exponent > largest, math.expm1(largest) / order, bounded_expm1(exponent) / order)


def largest_exponent(dtype: jnp.dtype) -> float:
    """Returns an exponent whose exponential, and sums of a few of them, stay finite in a type.

    >>> largest_exponent(jnp.float32)
    80.0
    """
    return {"float16": 10.0, "float64": 700.0}.get(jnp.dtype(dtype).name, 80.0)


def bounded_expm1(x: Array) -> Array:
    """Returns exp(x) - 1 with the exponent cut, so that differences of two stay finite.

    Beyond the cut the gradient is 0.

    >>> bounded_expm1(jnp.array([1.0, 1000.0]))
    Array([1.7182..., 5.5406...e+34], dtype=float32)
    """
    return jnp.expm1(jnp.minimum(x, largest_exponent(x.dtype)))
