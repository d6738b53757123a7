"""Sampling of completions: each prompt is prefilled once, and its completions are decoded from the shared cache.

Between segments of tokens the host yields the tokens so far, ends completions at stop strings, and drops the ended
ones to save time. None of this changes a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxalign.errors import UserError
from jaxalign.masking import Arrays
from jaxalign.models.model import Model
from jaxalign.rollout.decode import SEGMENT, State, decode, prefill, select
from jaxalign.rollout.sample import Sampling

# Returns the length at which a completion's text ends, or None: see ``jaxalign.rollout.stops``.
Stop = Callable[[Int[np.ndarray, " c"]], int | None]
# With fewer rows a decode step only waits for the weights to be read from memory, so dropping rows saves no time.
MIN_ROWS = 8


class Rollout(NamedTuple):
    """Sampled completions, K for each of B prompts. The completions of a prompt are adjacent.

    Attributes:
        tokens: sampled ids, 0 after the end.
        mask: True up to and including the end-of-sequence token, or the token that completes a stop string.
        logps: log-probability of each token under the untempered, unfiltered policy, in nats; 0 after the end.
    """

    tokens: Int[Arrays, "BK C"]
    mask: Bool[Arrays, "BK C"]
    logps: Float[Arrays, "BK C"]


class Progress(NamedTuple):
    """The completions after a segment, and which are done. The next segment writes into the same NumPy arrays."""

    rollout: Rollout
    done: Bool[np.ndarray, " BK"]


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
    min_p: float = 0.0,
    eos_id: int | Sequence[int] | None = None,
    stop: Stop | None = None,
    num_completions: int = 1,
    example_ids: Int[Arrays, " B"] | None = None,
) -> Rollout:
    """Samples ``num_completions`` completions of each prompt.

    Token t of completion k of prompt b is sampled with ``fold_in(fold_in(fold_in(key, example_ids[b]), k), t)``, so a
    rollout does not depend on which prompts share its batch.

    Args:
        model: the policy.
        params: its parameters.
        prompts: prompt ids, padded on either side.
        prompt_mask: True on prompt tokens, at least one per row.
        max_new_tokens: C, the maximum number of tokens of a completion.
        key: random key.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: sample among the k most likely tokens only; 0 for all.
        top_p: sample among the most likely tokens that together reach this probability; 1 for all.
        min_p: sample among the tokens at least this fraction as likely as the most likely one; 0 for all.
        eos_id: the id, or ids, that end a completion. With None only C ends it.
        stop: ends completions by their text; see ``jaxalign.rollout.stop_strings``.
        num_completions: K.
        example_ids: number of each prompt in the random keys; by default its row.

    Returns:
        ``Rollout`` with ``tokens``, ``mask``, ``logps`` [B·K, C]. Computation stops when all completions have ended.

    Raises:
        UserError: for a setting out of its range, or a prompt without tokens.
    """
    progress = stream(
        model,
        params,
        prompts,
        prompt_mask=prompt_mask,
        max_new_tokens=max_new_tokens,
        key=key,
        sampling=Sampling(float(temperature), int(top_k), float(top_p), float(min_p)),
        eos_id=eos_id,
        stop=stop,
        num_completions=num_completions,
        example_ids=example_ids,
    )
    *_, last = progress
    return Rollout(*map(jnp.asarray, last.rollout))


def stream(
    model: Model,
    params: Any,
    prompts: Int[Arrays, "B P"],
    *,
    prompt_mask: Bool[Arrays, "B P"],
    max_new_tokens: int,
    key: Array,
    sampling: Sampling = Sampling(),  # noqa: B008  # frozen
    eos_id: int | Sequence[int] | None = None,
    stop: Stop | None = None,
    num_completions: int = 1,
    example_ids: Int[Arrays, " B"] | None = None,
    segment: int = SEGMENT,
) -> Iterator[Progress]:
    """Yields the completions of ``generate`` as they grow: after the first token and after every ``segment`` more.

    Args:
        model: as in ``generate``.
        params: as in ``generate``.
        prompts: as in ``generate``.
        prompt_mask: as in ``generate``.
        max_new_tokens: as in ``generate``.
        key: as in ``generate``.
        sampling: temperature and filters.
        eos_id: as in ``generate``.
        stop: as in ``generate``.
        num_completions: as in ``generate``.
        example_ids: as in ``generate``.
        segment: tokens between two yields, at most 32. The sampled tokens do not depend on it.

    Yields:
        ``Progress``; the last one is the result of ``generate``.
    """
    prompts, prompt_mask = jnp.asarray(prompts), np.asarray(prompt_mask, bool)
    ids = jnp.arange(len(prompts)) if example_ids is None else jnp.asarray(example_ids)
    _check(prompt_mask, max_new_tokens, num_completions, segment)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):  # made by jax.random.PRNGKey
        key = jax.random.wrap_key_data(key)
    settings = {"sampling": sampling, "ends": () if eos_id is None else tuple(int(i) for i in np.ravel(eos_id))}

    weights = model.for_decoding(params)
    state, first_logps = prefill(
        model,
        params,
        prompts,
        jnp.asarray(prompt_mask),
        key,
        ids,
        count=num_completions,
        slots=-(-(max_new_tokens - 1) // SEGMENT) * SEGMENT,
        unstacked=isinstance(weights["layers"], tuple),
        **settings,
    )
    shape = (len(prompts) * num_completions, max_new_tokens)
    rollout = Rollout(np.zeros(shape, np.int32), np.zeros(shape, bool), np.zeros(shape, model.wide_dtype))
    rows, alive = np.arange(shape[0]), np.array(state.alive)
    rollout.tokens[:, 0], rollout.mask[:, 0], rollout.logps[:, 0] = state.token, True, first_logps
    length = 1
    while True:
        if stop is not None:
            state, alive = _end_by_text(rollout, state, rows, alive, stop)
        done = np.ones(shape[0], bool)
        done[rows[alive]] = length == max_new_tokens
        yield Progress(rollout, done)
        if done.all():
            return
        state, rows, alive = _drop_ended(state, rows, alive)
        steps = min(segment, max_new_tokens - length)
        state, out = decode(model, weights, state, jnp.int32(steps), **settings)
        for whole, new in zip(rollout, jax.device_get(out), strict=True):
            whole[rows[alive], length : length + steps] = new[alive, :steps]
        alive = np.array(state.alive)
        length += steps


def pad_left(
    prompts: Sequence[Sequence[int] | Int[np.ndarray, " P"]], width: int, size: int
) -> tuple[Int[np.ndarray, "B P"], Bool[np.ndarray, "B P"]]:
    """Returns prompts as ``size`` rows of ``width`` token ids, and their mask.

    Rows beyond the prompts contain one token, because ``generate`` refuses a row without tokens.
    """
    tokens, mask = np.zeros((size, width), np.int32), np.zeros((size, width), bool)
    mask[len(prompts) :, -1] = True
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = True
    return tokens, mask


def _check(prompt_mask: Bool[np.ndarray, "B P"], max_new_tokens: int, num_completions: int, segment: int) -> None:
    if max_new_tokens < 1 or num_completions < 1:
        raise UserError(
            f"max_new_tokens is {max_new_tokens} and num_completions is {num_completions}. Both must be 1 or more."
        )
    if not 1 <= segment <= SEGMENT:
        raise UserError(f"segment is {segment}. It must be from 1 to {SEGMENT}.")
    if not (has_tokens := prompt_mask.any(axis=-1)).all():
        raise UserError(f"Row {int(np.argmin(has_tokens))} of prompt_mask is False everywhere. Give it a token.")


def _end_by_text(
    rollout: Rollout, state: State, rows: Int[np.ndarray, " N"], alive: Bool[np.ndarray, " N"], stop: Stop
) -> tuple[State, Bool[np.ndarray, " N"]]:
    """Ends the completions whose text contains a stop string, at the token that completed it."""
    alive = alive.copy()
    for number, row in enumerate(rows):
        length = stop(rollout.tokens[row][rollout.mask[row]])
        if length is not None:
            alive[number] = False
            for whole in rollout:
                whole[row, length:] = 0
    return state._replace(alive=jnp.asarray(alive)), alive


def _drop_ended(
    state: State, rows: Int[np.ndarray, " N"], alive: Bool[np.ndarray, " N"]
) -> tuple[State, Int[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """Drops completions that have ended, if that halves the rows or the prompts.

    Halving limits the number of compiled programs. Every prompt must have the same number of rows, so some prompts keep
    ended ones.

    Args:
        state: state of the rows that are computed, K of each prompt.
        rows: the number of each in the rollout.
        alive: which are unfinished.
    """
    prompts = state.prompt_mask.shape[0]
    grid = alive.reshape(prompts, -1)
    width = _bucket(int(grid.sum(axis=1).max()), grid.shape[1])
    height = _bucket(int(grid.any(axis=1).sum()), prompts)
    if len(rows) <= MIN_ROWS or width * height == len(rows):
        return state, rows, alive
    chosen = np.argsort(~grid.any(axis=1), kind="stable")[:height]  # unfinished ones first, in their order
    columns = np.argsort(~grid[chosen], axis=1, kind="stable")[:, :width]
    remaining = (chosen[:, None] * grid.shape[1] + columns).reshape(-1)
    return select(state, jnp.asarray(chosen), jnp.asarray(remaining)), rows[remaining], alive[remaining]


def _bucket(count: int, size: int) -> int:
    """Returns the smallest of size, ⌈size/2⌉, ⌈size/4⌉, … that is at least ``count``.

    >>> _bucket(3, 8), _bucket(5, 8), _bucket(2, 3)
    (4, 8, 2)
    """
    while size > 1 and -(-size // 2) >= count:
        size = -(-size // 2)
    return size
