"""Random keys: a separate stream for each purpose of a seed, so that no key is used twice."""

from __future__ import annotations

import zlib

import jax
from jaxtyping import Array


def stream(seed: int, purpose: str) -> Array:
    """Returns the root key of what a run draws for one purpose (``"loop"``, ``"samples"``, …).

    >>> bool((stream(0, "loop") == stream(0, "loop")).all()), bool((stream(0, "loop") == stream(0, "samples")).all())
    (True, False)
    """
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
