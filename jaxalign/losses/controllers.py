"""KL controllers, pure functions (state, kl) -> state; and what best-of-n costs in KL."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxalign import _checks as check


class KLState(NamedTuple):
    """The coefficient β of a KL penalty, which a controller threads."""

    beta: Float[Array, ""]


def fixed_kl(state: KLState, kl: ArrayLike) -> KLState:
    """The controller that leaves β alone.

    Args:
      state: holds β.
      kl: KL just measured, nats per completion; not used.
    Returns:
      the same state.

    >>> fixed_kl(KLState(jnp.array(0.5)), 7.0).beta
    Array(0.5, dtype=float32, weak_type=True)
    """
    del kl
    return state


def adaptive_kl(state: KLState, kl: ArrayLike, *, target: float, gain: float = 0.1, max_error: float = 0.2) -> KLState:
    """Proportional control of log β towards a target KL: e = clip(kl/target - 1, ±max_error), β ← β (1 + gain·e).

    Source: Ziegler et al. 2019, arXiv:1909.08593, sec. 2.2.

    Args:
      state: holds β.
      kl: KL just measured, nats per completion, a scalar.
      target: the KL to hold.
      gain: K_β; TRL's horizon h and batch size n are gain = n / h.
      max_error: bound on the proportional error.
    Returns:
      the next state.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> adaptive_kl(KLState(jnp.array(0.5)), 12.0, target=6.0).beta
    Array(0.51, dtype=float32)
    """
    kl = check.to_number("kl", kl)
    check.same_shape("kl", kl, (), "a scalar")
    error = jnp.clip(kl / target - 1, -max_error, max_error)
    beta = check.to_number("state.beta", state.beta)
    return KLState((beta * (1 + gain * error)).astype(beta.dtype))  # the type stays, so that a scan can thread it


def best_of_n_kl(n: ArrayLike) -> Float[Array, "*B"]:
    """KL of best-of-n sampling from the policy it samples: log n - (n-1)/n, in nats.

    Exact where no two samples tie, an upper bound otherwise. Source: Stiennon et al. 2020, arXiv:2009.01325, app. G.3;
    Beirami et al. 2024, arXiv:2401.01879.

    Args:
      n: number of samples, at least 1, any shape.
    Returns:
      the KL in nats, of that shape.
    Raises:
      TypeError: for a wrong type, naming the argument.

    >>> best_of_n_kl(4)
    Array(0.6362..., dtype=float32)
    """
    n = check.to_number("n", n)
    return jnp.log(n) - (n - 1) / n
