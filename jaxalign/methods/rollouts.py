"""An iteration of an online method: sample, score, measure, and take optimiser steps.

Examples take four forms, and are converted once from each to the next (B prompts, K completions of up to C tokens)::

    trees        B × (prompt, K completions, log-probs, scores)     sampled and scored, on the host
      │  Packing.pack, once per iteration
    rows         [M, R, S] per token                                reference and value model, on the device
      │  rows_to_rectangle
    rectangles   [B, K, C] per token, [B, K] per completion         arithmetic over the whole batch
      │  minibatch: chosen examples, rectangle_to_rows
    rows         [M, R, S] per token, [M, R, E, K] per completion   optimiser steps

A packed row of two examples with K = 2, and the rectangle of the same values (C = 3)::

    value        a  b  c  d  e  f  g  ·  ·       rectangle   [[[e, f, ·], [g, ·, ·]],
    token        6  9 10 11  0  1  3  ·  ·                    [[a, ·, ·], [b, c, d]]]
    completion   2  3  3  3  0  0  1  ·  ·

``token`` is the place of a target slot in the flattened rectangle [B·K·C], ``completion`` that of its completion in
[B·K]. Both are extras of the packed trees, so each direction is one indexing operation.

``iterate`` is a generator. You can write it yourself instead, because its parts are plain functions::

    trees = collector(params, iteration, key).trees                # host: generate, score
    examples, method_state, metrics = prepare(params, method_state, trees)   # reference, values, advantages
    for chosen in minibatches(len(examples.trees), 4, key):
        state, metrics = step_fn(state, minibatch(examples, chosen, packing, weights=method.weights))

All randomness derives from ``fold_in(state.key, iteration)``, and the prompts of an iteration are a function of (seed,
iteration). A run that stops between iterations therefore resumes bitwise.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Shaped

from jaxalign.data.trees import Packed, Tree, pack
from jaxalign.loop import Batch, TrainState, map_microbatches, place_batch
from jaxalign.masking import Rows
from jaxalign.methods.collect import Collected
from jaxalign.methods.experience import Experience, Measurements, OnlineMethod, OnlineState, Outcome, StepInputs
from jaxalign.models.params import union

Metrics = dict[str, float]
# ``loop.make_step`` returns one.
Step = Callable[[TrainState, Batch], tuple[TrainState, Mapping[str, Any]]]


class Examples(NamedTuple):
    """Examples that the optimiser steps of an iteration learn from.

    Attributes:
        trees: prompts and completions.
        inputs: inputs of the steps, [B, K, C] per token or [B, K] per completion.
        mask: True on the tokens that count.
    """

    trees: list[Tree]
    inputs: StepInputs
    mask: Bool[np.ndarray, "B K C"]


Prepare = Callable[[Any, OnlineState, Sequence[Tree]], tuple[Examples, OnlineState, Metrics]]


@dataclasses.dataclass(frozen=True)
class Packing:
    """How trees are packed into rows on a mesh: one row shape and a fixed number of microbatches, so one program.

    Attributes:
        mesh: the mesh that rows are spread over.
        shape: (T, S) of a row; see ``for_lengths``.
        num_completions: K.
        rows_per_microbatch: R; memory grows with it, results do not depend on it.
    """

    mesh: jax.sharding.Mesh
    shape: tuple[int, int]
    num_completions: int
    rows_per_microbatch: int = 1

    @classmethod
    def for_lengths(
        cls, mesh: jax.sharding.Mesh, longest_prompt: int, num_completions: int, max_new_tokens: int, rows: int = 1
    ) -> Packing:
        """Returns a packing whose rows have room for any example, with at least 256 columns.

        Args:
            mesh: the mesh.
            longest_prompt: maximum length of a prompt, tokens.
            num_completions: K.
            max_new_tokens: maximum length of a completion, tokens.
            rows: R.
        """
        targets = num_completions * max_new_tokens
        columns = max(256, _round_up(longest_prompt + targets, 128))
        slots = _round_up(-(-columns * targets // (longest_prompt + targets)), 64)
        return cls(mesh, (columns, min(slots, columns)), num_completions, rows)

    def batch(self, trees: Sequence[Tree], room: int | None = None) -> Batch:
        """Returns the trees packed and placed on the mesh; arguments as in ``pack``."""
        return place_batch(*self.pack(trees, room), self.mesh)

    def pack(self, trees: Sequence[Tree], room: int | None = None) -> Packed:
        """Returns the trees packed into rows, on the host.

        Args:
            trees: the examples.
            room: maximum number of examples. Batches with the same room share one program.
        """
        return pack(
            trees,
            shapes=[self.shape],
            rows_per_microbatch=self.rows_per_microbatch,
            max_microbatches=-(-(room or len(trees)) // self.rows_per_microbatch),
            num_completions=self.num_completions,
        )


def number_places(trees: Sequence[Tree], length: int) -> list[Tree]:
    """Returns the trees with the places of their completions in [B·K] and of their tokens in [B·K·C]."""
    numbered = []
    for i, tree in enumerate(trees):
        completions = i * len(tree.completions) + np.arange(len(tree.completions), dtype=np.int32)
        tokens = tuple(
            np.int32(place * length) + np.arange(len(completion), dtype=np.int32)
            for place, completion in zip(completions, tree.completions, strict=True)
        )
        extras = {**tree.extras, "completion": completions}
        numbered.append(dataclasses.replace(tree, extras=extras, token_extras={**tree.token_extras, "token": tokens}))
    return numbered


def rows_to_rectangle(
    rows: Rows, values: Shaped[np.ndarray, "M R *slots"], size: tuple[int, int, int]
) -> Shaped[np.ndarray, "B K *C"]:
    """Returns values of packed rows as a rectangle, 0 where no token or completion is.

    Args:
        rows: rows of numbered trees (see the picture above).
        values: [M, R, S] per token, or [M, R, E, K] per completion.
        size: (B, K, C).
    """
    in_use, places = _places(rows, values.ndim == rows.owner.ndim)
    shape = size if values.ndim == rows.owner.ndim else size[:2]
    out = np.zeros(shape, values.dtype)
    out.reshape(-1)[places[in_use]] = values[in_use]
    return out


def rectangle_to_rows(rows: Rows, rectangle: Shaped[np.ndarray, "B K *C"]) -> Shaped[np.ndarray, "M R *slots"]:
    """Returns a rectangle's values in packed rows, 0 in unused slots: the inverse of ``rows_to_rectangle``."""
    in_use, places = _places(rows, rectangle.ndim == 3)
    return np.where(in_use, rectangle.reshape(-1)[places], rectangle.dtype.type(0))


def make_prepare(
    method: OnlineMethod,
    packing: Packing,
    *,
    size: int,
    length: int,
    frozen: Mapping[str, Any] | None = None,
    fixed: Any = None,
) -> Prepare:
    """Compiles the part of an iteration that needs the whole batch.

    Args:
        method: the method.
        packing: packing of the measuring pass.
        size: B, the maximum number of examples per iteration.
        length: C, the maximum number of tokens per completion.
        frozen: ``reference``, unless it is in the method state or is the base of adapters. NumPy arrays stay on the
            host except during the pass.
        fixed: the part of ``params`` that is not trained.

    Returns:
        (params, method_state, trees) -> (examples, method_state, metrics). The trees carry ``old_logps`` per token,
        and ``scores`` and ``finished`` per completion.
    """
    frozen = dict(frozen or {})
    measure = method.measure

    @jax.jit
    def measure_batch(params: Any, fixed: Any, frozen: Any, batch: Batch) -> Measurements:
        assert measure is not None
        whole = union(params, fixed)
        return map_microbatches(lambda rows: measure(whole, frozen, rows), batch)

    arithmetic = jax.jit(method.experience)

    def prepare(params: Any, method_state: OnlineState, trees: Sequence[Tree]) -> tuple[Examples, OnlineState, Metrics]:
        rows, used = packing.pack(number_places(trees, length), size)
        measurements = Measurements()
        if measure is not None:
            moving = {} if method_state.reference == () else {"reference": method_state.reference}
            batch = place_batch(dataclasses.replace(rows, extras={}), used, packing.mesh)
            measurements = jax.device_get(measure_batch(params, fixed, {**frozen, **moving}, batch))
        extras = rows.extras
        packed = Experience(rows.mask, extras["old_logps"], extras["scores"], extras["finished"], *measurements)
        rectangle = (size, packing.num_completions, length)
        experience = jax.tree.map(lambda values: rows_to_rectangle(rows, values, rectangle), packed)
        # The reference may be a whole model: the arithmetic must not copy it.
        without_reference = method_state._replace(reference=())
        outcome = arithmetic(without_reference, experience)
        after = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), outcome.state, without_reference)
        examples, metrics = _select(trees, experience.mask, outcome)
        return examples, after._replace(reference=method_state.reference), metrics

    return prepare


def minibatches(count: int, number: int, key: jax.Array) -> list[np.ndarray]:
    """Returns ``count`` examples in random order, in ``number`` sets of nearly equal size, without empty ones."""
    order = np.asarray(jax.random.permutation(key, count))
    return [part for part in np.array_split(order, number) if len(part)]


def minibatch(
    examples: Examples,
    chosen: Sequence[int] | np.ndarray,
    packing: Packing,
    *,
    weights: Callable[[Any], Any] | None = None,
    room: int | None = None,
) -> Batch:
    """Returns the chosen examples as rows on the mesh, with the inputs of the step as extras.

    Args:
        examples: the examples of the iteration.
        chosen: indices of the examples.
        packing: row shape and mesh; the number of completions is that of the examples.
        weights: the method's reduction: mask [N, C] of the minibatch -> the weight of every token.
        room: as in ``Packing.pack``.
    """
    chosen = np.asarray(chosen)
    mask, inputs = examples.mask[chosen], jax.tree.map(lambda values: values[chosen], examples.inputs)
    if weights is not None:
        weight = np.asarray(weights(jnp.asarray(mask.reshape(-1, mask.shape[-1]))))
        inputs = inputs._replace(weight=weight.reshape(mask.shape))
    packing = dataclasses.replace(packing, num_completions=mask.shape[1])
    rows, used = packing.pack(number_places([examples.trees[i] for i in chosen], mask.shape[-1]), room)
    extras = {name: rectangle_to_rows(rows, x) for name, x in inputs._asdict().items() if x is not None}
    return place_batch(dataclasses.replace(rows, extras=extras), used, packing.mesh)


class Update(NamedTuple):
    """State and metrics after the optimiser steps of an iteration."""

    state: TrainState
    metrics: Metrics


def update(
    state: TrainState,
    examples: Examples,
    key: jax.Array,
    *,
    step_fn: Step,
    packing: Packing,
    weights: Callable[[Any], Any] | None,
    epochs: int = 1,
    num_minibatches: int = 1,
    size: int | None = None,
    max_kl: float | None = None,
) -> Update:
    """Takes one optimiser step per minibatch, over several epochs.

    Args:
        state: donated to the first step; do not use it afterwards.
        examples: the examples, from ``prepare``.
        key: epoch e is ordered by ``fold_in(key, e)``.
        step_fn: the step, from ``loop.make_step``.
        packing: packing of minibatches.
        weights: the method's reduction; None if the step computes its own.
        epochs: passes over the examples.
        num_minibatches: minibatches per epoch.
        size: maximum number of examples per iteration, so that all iterations share one program.
        max_kl: stop after an epoch whose ``policy/approxkl_avg`` exceeds it.

    Returns:
        The state, and metrics averaged over the steps (the maximum, for names that end in ``_max``).
    """
    count = len(examples.trees)
    room = -(-(size or count) // num_minibatches)
    steps: list[Metrics] = []
    for epoch in range(epochs):
        pending = []
        for chosen in minibatches(count, num_minibatches, jax.random.fold_in(key, epoch)):
            state, metrics = step_fn(state, minibatch(examples, chosen, packing, weights=weights, room=room))
            pending.append(metrics)
        # Metrics are read after the epoch: packing the next minibatch does not wait for the device.
        new = [_floats(metrics) for metrics in pending]
        steps += new
        if max_kl is not None and np.mean([metrics["policy/approxkl_avg"] for metrics in new]) > max_kl:
            break
    series = {name: [metrics[name] for metrics in steps] for name in (steps[0] if steps else {})}
    reduced = {name: float(max(x) if name.endswith("_max") else np.mean(x)) for name, x in series.items()}
    return Update(state, {**reduced, "steps": float(len(steps))})


class Iteration(NamedTuple):
    """The result of an iteration: the state, metrics, seconds per phase, and the sampled and scored trees."""

    state: TrainState
    metrics: Metrics
    seconds: dict[str, float]
    trees: list[Tree]


def iterate(
    state: TrainState,
    collect: Callable[[Any, int, jax.Array], Collected],
    prepare: Prepare,
    update: Callable[[TrainState, Examples, jax.Array], Update],
    *,
    iterations: int,
    refresh: Callable[[Any, Any, Any], Any] | None = None,
) -> Iterator[Iteration]:
    """Yields iterations from the position of the state to ``iterations``.

    Args:
        state: a state with an ``OnlineState``. The next iteration donates a yielded one.
        collect: (params, iteration, key) -> scored trees; see ``collect.Collector``.
        prepare: see ``make_prepare``.
        update: (state, examples, key) -> the updated state and metrics: the function ``update`` with its other
            arguments bound.
        iterations: the iteration to stop at.
        refresh: (reference, params, completed iterations) -> reference, for a reference in the method state.
    """
    for iteration in range(int(state.method_state.iteration), iterations):
        key = jax.random.fold_in(state.key, iteration)
        trees, collected, seconds = collect(state.params, iteration, jax.random.fold_in(key, 0))
        started = time.perf_counter()
        examples, method_state, measured = prepare(state.params, state.method_state, trees)
        seconds = {**seconds, "prepare": time.perf_counter() - started}
        started = time.perf_counter()
        state = dataclasses.replace(state, method_state=method_state)
        state, updated = update(state, examples, jax.random.fold_in(key, 1))
        if refresh is not None:
            after = state.method_state
            reference = refresh(after.reference, state.params, iteration + 1)
            state = dataclasses.replace(state, method_state=after._replace(reference=reference))
        seconds["update"] = time.perf_counter() - started
        yield Iteration(state, {**collected, **measured, **updated}, seconds, trees)


def _places(rows: Rows, per_token: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns (slots in use, places in the flattened rectangle) of packed rows."""
    if per_token:
        return rows.owner >= 0, rows.extras["token"]
    return np.broadcast_to(rows.example_mask[..., None], rows.last.shape), rows.extras["completion"]


def _select(trees: Sequence[Tree], mask: np.ndarray, outcome: Outcome) -> tuple[Examples, Metrics]:
    """Returns the examples that the steps learn from (pairs, if the method makes pairs), and metrics."""
    count = len(trees)
    examples = Examples(
        list(trees), *jax.tree.map(lambda values: np.asarray(values)[:count], (jax.device_get(outcome.inputs), mask))
    )
    metrics = _floats(outcome.metrics)
    if outcome.pairs is None:
        return examples, metrics
    pairs = np.asarray(outcome.pairs)[:count]
    untied = np.flatnonzero(pairs[:, 0] != pairs[:, 1])

    def take(values: np.ndarray) -> np.ndarray:
        return values[untied[:, None], pairs[untied]]

    pair_trees = [trees[i].select(pairs[i]) for i in untied.tolist()]
    arrays = jax.tree.map(take, (examples.inputs, examples.mask))
    return Examples(pair_trees, *arrays), {**metrics, "rewards/tied": 1 - len(untied) / count}


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _floats(metrics: Mapping[str, Any]) -> Metrics:
    return {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
