"""Controllers of the KL penalty as pure functions (state, kl) -> state, and the KL of best-of-n sampling."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxalign import _checks as check


class KLState(NamedTuple):
    """State of a KL controller: the coefficient β of the penalty."""

    beta: Float[Array, ""]


def fixed_kl(state: KLState, kl: ArrayLike) -> KLState:
    """Returns the state unchanged: the controller of a constant β.

    Args:
        state: contains β.
        kl: measured KL, nats per completion; not used.

    Returns:
        the same state.

    >>> fixed_kl(KLState(jnp.array(0.5)), 7.0).beta
    Array(0.5, dtype=float32, weak_type=True)
    """
    del kl
    return state


def adaptive_kl(state: KLState, kl: ArrayLike, *, target: float, gain: float = 0.1, max_error: float = 0.2) -> KLState:
    """Moves log β in proportion to the error of the KL towards its target.

        e = clip(kl/target - 1, ±max_error)        β ← β (1 + gain·e)

    Args:
        state: contains β.
        kl: measured KL, nats per completion, a scalar.
        target: KL to reach, nats per completion.
        gain: K_β of the paper; TRL's horizon h and batch size n give gain = n / h.
        max_error: bound on the proportional error.

    Returns:
        the next state.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> adaptive_kl(KLState(jnp.array(0.5)), 12.0, target=6.0).beta
    Array(0.51, dtype=float32)

    Source: Ziegler et al. 2019, arXiv:1909.08593, sec. 2.2.
    """
    kl = check.to_number("kl", kl)
    check.same_shape("kl", kl, (), "a scalar")
    error = jnp.clip(kl / target - 1, -max_error, max_error)
    beta = check.to_number("state.beta", state.beta)
    return KLState((beta * (1 + gain * error)).astype(beta.dtype))  # a scan needs a state of constant type


def best_of_n_kl(n: ArrayLike) -> Float[Array, "*B"]:
    """Computes the KL of best-of-n sampling from the policy that it samples.

        log n - (n-1)/n

    It is exact where no two samples tie, an upper bound otherwise.

    Args:
        n: number of samples, at least 1, any shape.

    Returns:
        KL in nats, of the shape of ``n``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.

    >>> best_of_n_kl(4)
    Array(0.6362..., dtype=float32)

    Source: Stiennon et al. 2020, arXiv:2009.01325, app. G.3; Beirami et al. 2024, arXiv:2401.01879.
    """
    n = check.to_number("n", n)
    return jnp.log(n) - (n - 1) / n
