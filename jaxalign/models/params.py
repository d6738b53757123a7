"""Parameter trees: plain nested dicts of arrays, taken apart into what is trained and what is not, and joined again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Params = Any  # a nested dict of jax.Arrays


def union(one: Params, other: Params) -> Params:
    """Both trees as one; None is the empty tree.

    Raises:
      ValueError: if a leaf is in both.

    >>> union({"q": {"kernel": 1}}, {"q": {"lora_a": 2}, "norm": 3})
    {'q': {'kernel': 1, 'lora_a': 2}, 'norm': 3}
    """
    if one is None or other is None:
        return other if one is None else one
    joined = dict(one)
    for name, value in other.items():
        if name in joined and not (isinstance(value, Mapping) and isinstance(joined[name], Mapping)):
            raise ValueError(f"parameter {name!r} is in both trees")
        joined[name] = union(joined[name], value) if name in joined else value
    return joined


def replace_every(reference: Params, params: Params, step: int, *, every: int) -> Params:
    """A reference refreshed every so many steps: a copy of the parameters then, itself in between.

    Source: TR-DPO's hard update, Gorbatovski et al. 2024, arXiv:2404.09656, eq. 4.

    >>> old, new = {"w": jnp.zeros(1)}, {"w": jnp.ones(1)}
    >>> [float(replace_every(old, new, step, every=2)["w"][0]) for step in (1, 2)]
    [0.0, 1.0]
    """
    return jax.tree.map(jnp.copy, params) if step % every == 0 else reference


def moving_average(reference: Params, params: Params, step: int, *, rate: float) -> Params:
    """A reference that follows the parameters: (1 - α) reference + α params, in the reference's types.

    Source: TR-DPO's soft update, Gorbatovski et al. 2024, arXiv:2404.09656, eq. 3.

    >>> float(moving_average({"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, 1, rate=0.25)["w"][0])
    0.25
    """
    del step
    return jax.tree.map(lambda old, new: (old + rate * (new - old)).astype(old.dtype), reference, params)


def partition(params: Params, chosen: Callable[[tuple[str, ...]], bool]) -> tuple[Params, Params]:
    """The leaves whose path is ``chosen``, and the others: two trees whose ``union`` is the first.

    >>> partition({"q": {"kernel": 1, "lora_a": 2}, "norm": 3}, lambda path: path[-1] == "lora_a")
    ({'q': {'lora_a': 2}}, {'q': {'kernel': 1}, 'norm': 3})
    """

    def walk(tree: Params, path: tuple[str, ...]) -> tuple[Params, Params]:
        inside: tuple[dict[str, Any], dict[str, Any]] = {}, {}
        for name, value in tree.items():
            here = (*path, name)
            if isinstance(value, Mapping):
                parts = walk(value, here)
            else:
                parts = (value, {}) if chosen(here) else ({}, value)
            for side, part in zip(inside, parts, strict=True):
                if not (isinstance(part, Mapping) and not part):
                    side[name] = part
        return inside

    return walk(params, ())


def fingerprint(params: Params) -> str:
    """A hash of every number in a tree, wherever it lies: two sums over each leaf's bits, mixed with their place.

    >>> one = {"w": jnp.arange(4.0)}
    >>> fingerprint(one) == fingerprint({"w": jnp.arange(4.0)}), fingerprint(one) == fingerprint({"w": -one["w"]})
    (True, False)
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(params):
        sums = [int(total) for total in _bit_sums(leaf)]
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape} {sums};".encode())
    return digest.hexdigest()


@jax.jit
def _bit_sums(leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
    words = jnp.uint16 if leaf.dtype.itemsize == 2 else jnp.uint32
    bits = jax.lax.bitcast_convert_type(leaf, words).astype(jnp.uint32)
    place = jnp.arange(bits.size, dtype=jnp.uint32).reshape(bits.shape)
    # murmur3's finaliser, so that no change of bits cancels another; sums wrap and do not depend on their order.
    mixed = bits ^ (place * jnp.uint32(0x9E3779B9))
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(mixed, dtype=jnp.uint32), jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)
