"""f-divergences that may hold a policy to its reference, as functions of the log-ratio h = log π - log π_ref.

Each is f'(exp h) of D_f(π ‖ π_ref), up to an additive constant, which cancels between chosen and rejected: the implicit
reward of f-DPO is β f'(π / π_ref). Source: Wang et al. 2023, arXiv:2309.16240, table 1. Pass one as ``divergence`` to
``dpo`` and its relatives.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax.nn import log_sigmoid
from jaxtyping import Array, Float

from jaxalign import _checks as check


def reverse_kl(log_ratio: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """KL(π ‖ π_ref), the standard: h.

    Source: Wang et al. 2023, arXiv:2309.16240, table 1.

    Args:
      log_ratio: h in nats, ``[...]``.
    Returns:
      the score, ``[...]``.

    >>> reverse_kl(jnp.array([0.5]))
    Array([0.5], dtype=float32)
    """
    return check.to_float("log_ratio", log_ratio)


def forward_kl(log_ratio: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """KL(π_ref ‖ π): 1 - exp(-h); the exponent is cut at 80 in float32 and 700 in float64.

    Source: Wang et al. 2023, arXiv:2309.16240, table 1.

    Args:
      log_ratio: h in nats, ``[...]``.
    Returns:
      the score, ``[...]``.

    >>> forward_kl(jnp.array([0.5]))
    Array([0.3934...], dtype=float32)
    """
    return -bounded_expm1(-check.to_float("log_ratio", log_ratio))


def jensen_shannon(log_ratio: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Jensen-Shannon: log 2 + log σ(h).

    Source: Wang et al. 2023, arXiv:2309.16240, table 1.

    Args:
      log_ratio: h in nats, ``[...]``.
    Returns:
      the score, ``[...]``, below log 2.

    >>> jensen_shannon(jnp.array([0.5]))
    Array([0.2190...], dtype=float32)
    """
    return math.log(2) + log_sigmoid(check.to_float("log_ratio", log_ratio))


def alpha_divergence(log_ratio: Float[Array, "*B"], *, alpha: float) -> Float[Array, "*B"]:
    """α-divergence: (exp((α-1) h) - 1) / (α-1); at α = 1 its limit, reverse KL; at α = 0 forward KL.

    Source: Wang et al. 2023, arXiv:2309.16240, table 1, whose α is 1 - α here. The exponent is cut as in
    ``forward_kl``. As a ``divergence``: ``functools.partial(alpha_divergence, alpha=0.5)``.

    Args:
      log_ratio: h in nats, ``[...]``.
      alpha: α, a Python number.
    Returns:
      the score, ``[...]``.

    >>> alpha_divergence(jnp.array([0.5]), alpha=0.5)
    Array([0.4423...], dtype=float32)
    """
    log_ratio = check.to_float("log_ratio", log_ratio)
    order = alpha - 1
    if order == 0:
        return log_ratio
    exponent, largest = order * log_ratio, largest_exponent(log_ratio.dtype)
    # The constant is selected last: a fused multiply-add of the division and the difference between chosen and
    # rejected would make noise of two equal scores beyond the cut.
    return jnp.where(exponent > largest, math.expm1(largest) / order, bounded_expm1(exponent) / order)


def largest_exponent(dtype: jnp.dtype) -> float:
    """An exponent beyond which an exponential, or sums of a few, would leave its type.

    >>> largest_exponent(jnp.float32)
    80.0
    """
    return {"float16": 10.0, "float64": 700.0}.get(jnp.dtype(dtype).name, 80.0)


def bounded_expm1(x: Array) -> Array:
    """exp(x) - 1 with the exponent cut, so that differences of two stay finite; gradients beyond are 0.

    >>> bounded_expm1(jnp.array([1.0, 1000.0]))
    Array([1.7182..., 5.5406...e+34], dtype=float32)
    """
    return jnp.expm1(jnp.minimum(x, largest_exponent(x.dtype)))
