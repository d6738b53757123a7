"""Parameter trees: nested dicts of arrays that are joined, partitioned, averaged and compared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

Params = Any  # a nested dict of jax.Arrays


def union(first: Params, second: Params) -> Params:
    """Returns one tree with the leaves of both; None is the empty tree.

    Raises:
        ValueError: if a leaf is in both.

    >>> union({"q": {"kernel": 1}}, {"q": {"lora_a": 2}, "norm": 3})
    {'q': {'kernel': 1, 'lora_a': 2}, 'norm': 3}
    """
    if first is None or second is None:
        return second if first is None else first
    leaves, others = flatten_dict(first), flatten_dict(second)
    if both := leaves.keys() & others.keys():
        raise ValueError(f"Parameter {'.'.join(min(both))!r} is in both trees.")
    return unflatten_dict(leaves | others)


def average_params(a: Params, b: Params, weight: float | jax.Array, dtype: Any = None) -> Params:
    """Interpolates two parameter trees: a + weight · (b - a), leaf by leaf.

    Args:
        a: first tree, returned at weight 0.
        b: second tree of the same structure and shapes, returned at weight 1.
        weight: scalar. Values outside [0, 1] extrapolate.
        dtype: type of the result. By default it is the wider of both leaves' types, and float32 at least.

    Returns:
        New arrays. At weights 0 and 1 they are bitwise copies of the given leaves (cast only if ``dtype`` is given).

    Raises:
        ValueError: if the trees differ in structure or shapes.

    >>> float(average_params({"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, 0.25)["w"][0])
    0.25
    """
    end = None
    # A traced weight has no value yet. It takes the general formula.
    if not isinstance(weight, jax.core.Tracer):
        end = {0.0: 0, 1.0: 1}.get(float(weight))

    def average(first: jax.Array, second: jax.Array) -> jax.Array:
        if jnp.shape(first) != jnp.shape(second):
            raise ValueError(f"The trees have leaves of shapes {jnp.shape(first)} and {jnp.shape(second)}.")
        if end is not None:  # the formula would round: first + (second - first) is not always second
            return jnp.array((first, second)[end], dtype)
        wide = jnp.promote_types(jnp.promote_types(first.dtype, second.dtype), jnp.float32)
        first, second = first.astype(wide), second.astype(wide)
        return (first + jnp.asarray(weight, wide) * (second - first)).astype(dtype or wide)

    return jax.tree.map(average, a, b)


def replace_every(reference: Params, params: Params, step: int, *, every: int) -> Params:
    """Returns a copy of the parameters at every ``every``-th step, and the reference otherwise.

    Source: TR-DPO's hard update, Gorbatovski et al. 2024, arXiv:2404.09656, eq. 4.

    >>> old, new = {"w": jnp.zeros(1)}, {"w": jnp.ones(1)}
    >>> [float(replace_every(old, new, step, every=2)["w"][0]) for step in (1, 2)]
    [0.0, 1.0]
    """
    return jax.tree.map(jnp.copy, params) if step % every == 0 else reference


def moving_average(reference: Params, params: Params, step: int, *, rate: float) -> Params:
    """Returns (1 - α) reference + α params, in the reference's types.

    Source: TR-DPO's soft update, Gorbatovski et al. 2024, arXiv:2404.09656, eq. 3.

    >>> float(moving_average({"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, 1, rate=0.25)["w"][0])
    0.25
    """
    del step
    averaged = average_params(reference, params, rate)
    return jax.tree.map(lambda old, new: new.astype(old.dtype), reference, averaged)


def partition(params: Params, is_selected: Callable[[tuple[str, ...]], bool]) -> tuple[Params, Params]:
    """Splits a tree into the leaves whose path is selected and the others; their ``union`` is the tree.

    >>> partition({"q": {"kernel": 1, "lora_a": 2}, "norm": 3}, lambda path: path[-1] == "lora_a")
    ({'q': {'lora_a': 2}}, {'q': {'kernel': 1}, 'norm': 3})
    """
    halves: tuple[dict[tuple[str, ...], Any], ...] = {}, {}
    for path, leaf in flatten_dict(params).items():
        halves[0 if is_selected(path) else 1][path] = leaf
    return unflatten_dict(halves[0]), unflatten_dict(halves[1])


def fingerprint(params: Params) -> str:
    """Returns a hash of every number in a tree, independent of how the arrays are sharded.

    The hash combines two sums over each leaf's bits, mixed with their place in the leaf.

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
