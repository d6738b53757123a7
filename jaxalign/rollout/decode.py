"""The jitted programs of generation: prefill the prompts, decode a segment of tokens, select the unfinished rows.

Rows are computed independently: a completion depends only on its prompt and its keys.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxalign.masking import gather_columns
from jaxalign.models.attention import attention
from jaxalign.models.model import Model
from jaxalign.models.sharding import replicated
from jaxalign.rollout.sample import Sampling, sample

# Maximum number of tokens that a program decodes before the host reads them.
SEGMENT = 32
_static = ("model", "sampling", "ends")


class Cache(NamedTuple):
    """Keys and values of rows, in the layouts that the two products of a decode step need without a transposition.

    Either the layers are stacked on a leading axis (``*L``), or there is a tuple with one ``Cache`` per layer. The
    latter goes with parameters that ``Model.for_decoding`` unstacked.
    """

    keys: Float[Array, "*L N G h C"]
    values: Float[Array, "*L N G C h"]


Caches = Cache | tuple[Cache, ...]


class State(NamedTuple):
    """State of N = B·K completions of B prompts. The completions of a prompt are adjacent.

    Attributes:
        token: the last sampled token.
        alive: whether the completion is unfinished.
        keys: random key of each completion.
        start: position of its first token.
        t: number of tokens sampled so far.
        own: cache of the completions, without the last token.
        prompt: cache of the prompts, shared by their completions.
        prompt_mask: True on prompt tokens.
    """

    token: Int[Array, " N"]
    alive: Bool[Array, " N"]
    keys: Key[Array, " N"]
    start: Int[Array, " N"]
    t: Int[Array, ""]
    own: Caches
    prompt: Caches
    prompt_mask: Bool[Array, "B P"]


@functools.partial(jax.jit, static_argnames=(*_static, "count", "slots", "unstacked"))
def prefill(
    model: Model,
    params: Any,
    prompts: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
    key: Key[Array, ""],
    ids: Int[Array, " B"],
    *,
    sampling: Sampling,
    ends: tuple[int, ...],
    count: int,
    slots: int,
    unstacked: bool,
) -> tuple[State, Float[Array, " N"]]:
    """Runs the prompts and samples the first token of ``count`` completions of each.

    Returns:
        (the state, the tokens' log-probs).
    """
    batch, width = prompts.shape
    position = jnp.maximum(jnp.cumsum(prompt_mask, axis=-1) - 1, 0)
    causal = jnp.tril(jnp.ones((width, width), bool))
    seen = (causal & prompt_mask[:, None, :]) | jnp.eye(width, dtype=bool)
    seen &= within_window(model, position[:, :, None], position[:, None, :])

    def attend(_: None, q: Array, k: Array, v: Array) -> tuple[Array, Cache]:
        return attention(q, k, v, seen), _cached(k, v)

    states, cache = model.apply(params, prompts, position, attend)
    last = width - 1 - jnp.argmax(prompt_mask[:, ::-1], axis=-1)
    logits = jnp.repeat(_logits(model, params, gather_columns(states, last[:, None])[:, 0]), count, axis=0)
    fold = jax.vmap(jax.random.fold_in)
    keys = fold(jnp.repeat(fold(jnp.broadcast_to(key, (batch,)), ids), count), jnp.tile(jnp.arange(count), batch))
    token, logps = sample(logits, fold(keys, jnp.zeros(batch * count, jnp.int32)), sampling)

    layers, _, groups, size, _ = cache.keys.shape
    empty = functools.partial(jnp.zeros, dtype=cache.keys.dtype)
    rows = batch * count
    own = Cache(empty((layers, rows, groups, size, slots)), empty((layers, rows, groups, slots, size)))
    split = lambda c: tuple(Cache(c.keys[i], c.values[i]) for i in range(layers)) if unstacked else c  # noqa: E731
    start = jnp.repeat(jnp.sum(prompt_mask, axis=-1), count)
    alive = _replicate(model, ~_ended(token, ends))
    return State(token, alive, keys, start, jnp.int32(1), split(own), split(cache), prompt_mask), logps


@functools.partial(jax.jit, static_argnames=_static, donate_argnames="state")
def decode(
    model: Model, params: Any, state: State, steps: Int[Array, ""], *, sampling: Sampling, ends: tuple[int, ...]
) -> tuple[State, tuple[Int[Array, "N s"], Bool[Array, "N s"], Float[Array, "N s"]]]:
    """Samples up to ``steps`` more tokens of every unfinished completion; it stops early if all have ended.

    Returns:
        (the state, (tokens, mask, log-probs)).
    """
    fold = jax.vmap(jax.random.fold_in, (0, None))
    shape = (state.token.shape[0], SEGMENT)
    out = (jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool), jnp.zeros(shape, model.wide_dtype))

    def step(carry: tuple[Array, Any, Any]) -> tuple[Array, Any, Any]:
        i, (token, alive, t, own), out = carry
        now = state._replace(token=token, alive=alive, t=t, own=own)
        hidden, own = _one_token(model, params, now)
        token, logps = sample(_logits(model, params, hidden), fold(state.keys, t), sampling)
        column = (jnp.where(alive, token, 0), alive, jnp.where(alive, logps, 0))
        out = jax.tree.map(lambda whole, new: whole.at[:, i].set(new), out, column)
        return i + 1, (token, alive & ~_ended(token, ends), t + 1, own), out

    def running(carry: tuple[Array, Any, Any]) -> Array:
        i, (_, alive, _, _), _ = carry
        return (i < steps) & jnp.any(alive)

    moving = (state.token, state.alive, state.t, state.own)
    _, (token, alive, t, own), out = jax.lax.while_loop(running, step, (jnp.int32(0), moving, out))
    alive, out = _replicate(model, (alive, out))
    return state._replace(token=token, alive=alive, t=t, own=own), out


@jax.jit
def select(state: State, prompts: Int[Array, " b"], rows: Int[Array, " n"]) -> State:
    """Returns the state of the given prompts and of the given completions of theirs, in the given order."""

    def take(caches: Caches, numbers: Array) -> Caches:
        return jax.tree.map(lambda leaf: jnp.take(leaf, numbers, axis=leaf.ndim - 4), caches)

    by_row = {name: getattr(state, name)[rows] for name in ("token", "alive", "keys", "start")}
    own, prompt = take(state.own, rows), take(state.prompt, prompts)
    return state._replace(**by_row, own=own, prompt=prompt, prompt_mask=state.prompt_mask[prompts])


def _one_token(model: Model, params: Any, state: State) -> tuple[Float[Array, "N D"], Caches]:
    """Computes the state at each completion's last token, and the completions' cache including that token.

    A query attends to its prompt (whose cache the K completions share) and to its completion's tokens, itself included.
    """
    batch, width = state.prompt_mask.shape
    rows = state.token.shape[0]
    t = state.t - 1  # place of the token in its completion
    position = state.start + t
    prompt_position = jnp.maximum(jnp.cumsum(state.prompt_mask, axis=-1) - 1, 0)
    near = within_window(model, position.reshape(batch, -1, 1), prompt_position[:, None, :])
    count = rows // batch
    sees_prompt = jnp.broadcast_to(state.prompt_mask[:, None] & near, (batch, count, width)).reshape(rows, 1, 1, width)
    slots = jnp.arange(jax.tree.leaves(state.own)[0].shape[-1])
    sees_own = (slots <= t) & within_window(model, t, slots)  # [C]
    stacked = isinstance(state.own, Cache)

    def write(cache: Cache, new: Cache) -> Cache:
        update = jax.lax.dynamic_update_slice_in_dim
        return Cache(update(cache.keys, new.keys, t, axis=-1), update(cache.values, new.values, t, axis=-2))

    def join_siblings(x: Float[Array, "N G q c"]) -> Float[Array, "B G Kq c"]:
        """Joins the queries of a prompt's completions, for one product with the prompt's cache."""
        return x.reshape(batch, count, *x.shape[1:]).swapaxes(1, 2).reshape(batch, x.shape[1], -1, x.shape[-1])

    def split_siblings(x: Float[Array, "B G Kq c"]) -> Float[Array, "N G q c"]:
        split = x.reshape(batch, x.shape[1], count, -1, x.shape[-1])
        return split.swapaxes(1, 2).reshape(rows, x.shape[1], -1, x.shape[-1])

    def attend(caches: tuple[Cache, Cache], q: Array, k: Array, v: Array) -> tuple[Array, Cache]:
        prompt, old = caches
        new = _cached(k, v)
        own = write(old, new)  # before it is read: XLA may copy the whole cache for a later write
        groups, head = k.shape[-2:]
        # Plain products: XLA's CPU compiler runs the equivalent einsum several times slower.
        product = functools.partial(jnp.matmul, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
        q = (q * head**-0.5).reshape(rows, groups, -1, head)  # [N, G, H/G, h]
        to_prompt = jnp.where(sees_prompt, split_siblings(product(join_siblings(q), prompt.keys)), -jnp.inf)
        to_own = jnp.where(sees_own, product(q, own.keys), -jnp.inf)
        top = jnp.maximum(jnp.max(to_prompt, axis=-1), jnp.max(to_own, axis=-1))[..., None]
        on_prompt, on_own = jnp.exp(to_prompt - top), jnp.exp(to_own - top)
        total = jnp.sum(on_prompt, axis=-1) + jnp.sum(on_own, axis=-1)
        out = split_siblings(product(join_siblings(on_prompt.astype(v.dtype)), prompt.values))
        out = (out + product(on_own.astype(v.dtype), own.values)) / total[..., None]
        return out.reshape(rows, 1, -1, head).astype(v.dtype), new if stacked else own

    caches = (state.prompt, state.own) if stacked else tuple(zip(state.prompt, state.own, strict=True))
    hidden, new = model.apply(params, state.token[:, None], position[:, None], attend, caches)
    return hidden[:, 0], write(state.own, new) if isinstance(state.own, Cache) else new


def _cached(k: Float[Array, "N C G h"], v: Float[Array, "N C G h"]) -> Cache:
    return Cache(k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3))


def _logits(model: Model, params: Any, hidden: Float[Array, "N D"]) -> Float[Array, "N V"]:
    return jnp.matmul(hidden, model.head(params), preferred_element_type=model.wide_dtype)


def within_window(model: Model, query: Array, key: Array) -> Array:
    """Returns whether a key's position is within the query's sliding window."""
    window = model.config.sliding_window
    return jnp.asarray(True) if window is None else query - key < window


def _ended(token: Int[Array, " N"], ends: tuple[int, ...]) -> Bool[Array, " N"]:
    return jnp.any(token[:, None] == jnp.asarray(ends, jnp.int32), axis=-1)


def _replicate(model: Model, tree: Any) -> Any:
    """Replicates arrays on every device, because every host reads them."""
    return jax.lax.with_sharding_constraint(tree, replicated(model.mesh))
