"""Sampling: prefill each prompt once, then decode its completions from the shared cache, one token at a time."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxalign.masking import Arrays, gather_columns
from jaxalign.models.attention import attention
from jaxalign.models.model import Model


class Rollout(NamedTuple):
    """Sampled completions, K for each of B prompts, the completions of a prompt next to each other.

    Attributes:
      tokens: sampled ids, 0 after the end.
      mask: True up to and including the end-of-sequence token.
      logps: log-probability of each token under the untempered, unfiltered policy, in nats; 0 after the end.
    """

    tokens: Int[Array, "BK C"]
    mask: Bool[Array, "BK C"]
    logps: Float[Array, "BK C"]


def filter_logits(logits: Float[Array, "N V"], *, top_k: int, top_p: float) -> Float[Array, "N V"]:
    """Logits with all but the kept tokens at -inf.

    ``top_k`` keeps the k most likely (0: all). ``top_p`` keeps the smallest set of most likely tokens whose
    probability reaches p, at least one (nucleus sampling, Holtzman et al. 2020, eq. 2); 1 keeps all.
    """
    if top_k:
        kth = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits >= kth, logits, -jnp.inf)
    if top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        threshold = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= threshold, logits, -jnp.inf)
    return logits


def generate(
    model: Model,
    params: Any,
    prompts: Int[Arrays, "B P"],
    *,
    prompt_mask: Bool[Arrays, "B P"],
    max_new_tokens: int,
    key: Array,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    eos_id: int | Sequence[int] | None = None,
    num_completions: int = 1,
    example_ids: Int[Arrays, " B"] | None = None,
) -> Rollout:
    """Sample ``num_completions`` continuations of each prompt.

    Token t of completion k of prompt b is drawn with ``fold_in(fold_in(fold_in(key, example_ids[b]), k), t)``, so a
    rollout does not depend on which prompts share its batch.

    Args:
      model: the policy.
      params: its parameters.
      prompts: prompt ids, padded on either side.
      prompt_mask: True on prompt tokens; at least one a row.
      max_new_tokens: C, the longest completion in tokens.
      key: random key.
      temperature: divides the logits; 0 takes the most likely token.
      top_k: sample among the k most likely tokens only; 0 for all.
      top_p: sample among the most likely tokens that together reach this probability; 1 for all.
      eos_id: the id, or ids, that end a completion; None for no end before C.
      num_completions: K.
      example_ids: the number of each prompt in the random keys; its row by default.
    Returns:
      ``Rollout`` with ``tokens``, ``mask``, ``logps`` [B·K, C]. Stops computing when all completions have ended.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):  # made by jax.random.PRNGKey
        key = jax.random.wrap_key_data(key)
    ends = () if eos_id is None else tuple(int(i) for i in np.ravel(eos_id))
    ids = jnp.arange(prompts.shape[0]) if example_ids is None else jnp.asarray(example_ids)
    return _generate(
        model,
        params,
        jnp.asarray(prompts),
        jnp.asarray(prompt_mask, bool),
        key,
        ids,
        max_new_tokens=max_new_tokens,
        num_completions=num_completions,
        temperature=float(temperature),
        top_k=top_k,
        top_p=float(top_p),
        eos_ids=ends,
    )


@functools.partial(
    jax.jit,
    static_argnames=("model", "max_new_tokens", "num_completions", "temperature", "top_k", "top_p", "eos_ids"),
)
def _generate(
    model: Model,
    params: Any,
    prompts: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
    key: Array,
    ids: Int[Array, " B"],
    *,
    max_new_tokens: int,
    num_completions: int,
    temperature: float,
    top_k: int,
    top_p: float,
    eos_ids: tuple[int, ...],
) -> Rollout:
    """The program of ``generate``, one for each shape and setting."""
    batch, width = prompts.shape
    count = num_completions
    ends = jnp.asarray(eos_ids, jnp.int32)
    fold = jax.vmap(jax.random.fold_in)
    prompt_keys = jnp.repeat(fold(jnp.broadcast_to(key, (batch,)), ids), count)
    row_keys = fold(prompt_keys, jnp.tile(jnp.arange(count), batch))

    def sample(states: Float[Array, "N D"], t: Int[Array, ""]) -> tuple[Array, Array]:
        wide = jnp.promote_types(model.dtype, jnp.float32)
        logits = jnp.matmul(states, model.head(params), preferred_element_type=wide)
        if temperature == 0:
            token = jnp.argmax(logits, axis=-1)
        else:
            kept = filter_logits(logits / temperature, top_k=top_k, top_p=top_p)
            token = jax.vmap(lambda k, row: jax.random.categorical(jax.random.fold_in(k, t), row))(row_keys, kept)
        logp = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=-1)[:, 0]
        return token.astype(jnp.int32), logp

    states, prompt_cache = prefill(model, params, prompts, prompt_mask)
    last = width - 1 - jnp.argmax(prompt_mask[:, ::-1], axis=-1)
    first_state = jnp.repeat(gather_columns(states, last[:, None])[:, 0], count, axis=0)
    token, logp = sample(first_state, jnp.int32(0))
    start = jnp.repeat(jnp.sum(prompt_mask, axis=-1), count)  # position of the first new token

    shape = (batch * count, max_new_tokens)
    k_prompt = prompt_cache[0]
    own_shape = (k_prompt.shape[0], batch * count, max_new_tokens, *k_prompt.shape[3:])
    own_cache = (jnp.zeros(own_shape, k_prompt.dtype), jnp.zeros(own_shape, k_prompt.dtype))
    carry = {
        "t": jnp.int32(0),
        "token": token,
        "logp": logp,
        "alive": jnp.ones(batch * count, bool),
        "cache": own_cache,
        "out": Rollout(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool), jnp.zeros(shape, logp.dtype)),
    }

    def write(carry: dict[str, Any]) -> tuple[Rollout, Array]:
        """Record the token just drawn where its completion still runs; say which run on."""
        alive, t, out = carry["alive"], carry["t"], carry["out"]
        out = Rollout(
            out.tokens.at[:, t].set(jnp.where(alive, carry["token"], 0)),
            out.mask.at[:, t].set(alive),
            out.logps.at[:, t].set(jnp.where(alive, carry["logp"], 0)),
        )
        return out, alive & ~jnp.any(carry["token"][:, None] == ends, axis=-1)

    def body(carry: dict[str, Any]) -> dict[str, Any]:
        out, alive = write(carry)
        t = carry["t"]
        state, new = decode(model, params, carry["token"], start + t, t, prompt_cache, prompt_mask, carry["cache"])
        cache = jax.tree.map(lambda c, n: jax.lax.dynamic_update_slice_in_dim(c, n, t, axis=2), carry["cache"], new)
        token, logp = sample(state, t + 1)
        return {"t": t + 1, "token": token, "logp": logp, "alive": alive, "cache": cache, "out": out}

    def running(carry: dict[str, Any]) -> Array:
        ended = jnp.any(carry["token"][:, None] == ends, axis=-1)
        return (carry["t"] < max_new_tokens - 1) & jnp.any(carry["alive"] & ~ended)

    return write(jax.lax.while_loop(running, body, carry))[0]


def prefill(
    model: Model, params: Any, prompts: Int[Array, "B P"], prompt_mask: Bool[Array, "B P"]
) -> tuple[Float[Array, "B P D"], tuple[Array, Array]]:
    """States of the prompts, and every layer's keys and values [L, B, P, G, h]."""
    position = jnp.maximum(jnp.cumsum(prompt_mask, axis=-1) - 1, 0)
    causal = jnp.tril(jnp.ones((prompts.shape[1],) * 2, bool))
    seen = (causal & prompt_mask[:, None, :]) | jnp.eye(prompts.shape[1], dtype=bool)
    seen &= _within(model, position[:, :, None], position[:, None, :])

    def attend(_: None, q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
        return attention(q, k, v, seen), (k, v)

    return model.apply(params, prompts, position, attend)


def decode(
    model: Model,
    params: Any,
    token: Int[Array, " N"],
    position: Int[Array, " N"],
    t: Int[Array, ""],
    prompt_cache: tuple[Array, Array],
    prompt_mask: Bool[Array, "B P"],
    own_cache: tuple[Array, Array],
) -> tuple[Float[Array, "N D"], tuple[Array, Array]]:
    """State after one more token of each of N = B·K completions, and its keys and values [L, N, 1, G, h].

    A query sees its prompt (in the cache that K completions share), its completion's first ``t`` tokens and itself.
    """
    batch = prompt_mask.shape[0]
    length = own_cache[0].shape[2]
    prompt_position = jnp.maximum(jnp.cumsum(prompt_mask, axis=-1) - 1, 0)
    by_prompt = position.reshape(batch, -1)
    near = _within(model, by_prompt[:, :, None], prompt_position[:, None, :])
    sees_prompt = prompt_mask[:, None, :] & near  # [B, K, P]
    own_position = (position - t)[:, None] + jnp.arange(length)
    drawn = jnp.broadcast_to(jnp.arange(length) < t, own_position.shape)
    sees_own = drawn & _within(model, position[:, None], own_position)  # [N, C]

    def attend(cache: Any, q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
        (k_prompt, v_prompt), (k_own, v_own) = cache
        wide = jnp.promote_types(q.dtype, jnp.float32)
        groups, head = k.shape[-2:]
        q = (q[:, 0] * head**-0.5).reshape(batch, -1, groups, q.shape[-2] // groups, head)  # [B, K, G, Q, h]
        split = lambda x: x.reshape(batch, -1, *x.shape[1:])  # noqa: E731  # [N, ...] -> [B, K, ...]
        einsum = functools.partial(jnp.einsum, preferred_element_type=wide)
        to_prompt = jnp.where(sees_prompt[:, :, None, None], einsum("bkgqh,bpgh->bkgqp", q, k_prompt), -jnp.inf)
        to_own = jnp.where(split(sees_own)[:, :, None, None], einsum("bkgqh,bkcgh->bkgqc", q, split(k_own)), -jnp.inf)
        to_self = einsum("bkgqh,bkgh->bkgq", q, split(k[:, 0]))[..., None]
        scores = jax.nn.softmax(jnp.concatenate([to_prompt, to_own, to_self], axis=-1), axis=-1).astype(v.dtype)
        width = k_prompt.shape[1]
        out = einsum("bkgqp,bpgh->bkgqh", scores[..., :width], v_prompt)
        out += einsum("bkgqc,bkcgh->bkgqh", scores[..., width:-1], split(v_own))
        out += scores[..., -1:] * split(v[:, 0])[:, :, :, None]
        return out.reshape(token.shape[0], 1, -1, head).astype(v.dtype), (k, v)

    states, new = model.apply(params, token[:, None], position[:, None], attend, (prompt_cache, own_cache))
    return states[:, 0], new


def _within(model: Model, query: Array, key: Array) -> Array:
    """Whether a key's position lies in the query's sliding window."""
    window = model.config.sliding_window
    return jnp.asarray(True) if window is None else query - key < window
