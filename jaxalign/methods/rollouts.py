"""An iteration of an online method: sample, score, measure, and steps on what came of it.

``iterate`` is a generator that anyone can write instead; its parts are plain functions::

    trees = collector(params, iteration, key).trees             # host: generate, score
    trees, method_state, metrics = prepare(params, method_state, trees)   # jitted: reference, values, advantages
    for chosen in minibatches(len(trees), 4, key):                # host: sets of examples, packed
        state, metrics = step_fn(state, packing.batch(weighted(trees, chosen, weights)))

All that is random comes of ``fold_in(state.key, iteration)``, and what prompts an iteration has is a function of (seed,
iteration), so a run stopped between iterations goes on as if it had not been.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxalign.data.batches import attach
from jaxalign.data.trees import Packed, Tree, pack, unpack
from jaxalign.loop import Batch, TrainState, map_microbatches, place_batch
from jaxalign.methods.collect import Collected
from jaxalign.methods.experience import Experience, Online, OnlineState
from jaxalign.models.params import union

Metrics = dict[str, float]
Step = Callable[[TrainState, Batch], tuple[TrainState, Mapping[str, Any]]]
"""What ``loop.make_step`` makes, or anything around it."""
Prepare = Callable[[Any, OnlineState, Sequence[Tree]], tuple[list[Tree], OnlineState, Metrics]]


@dataclasses.dataclass(frozen=True)
class Packing:
    """How trees are laid into rows on a mesh: one shape and a fixed number of microbatches, so one program.

    Attributes:
      mesh: where the rows go.
      shape: (T, S) of a row; see ``fit``.
      num_completions: K.
      rows_per_microbatch: R; memory grows with it, results do not depend on it.
    """

    mesh: jax.sharding.Mesh
    shape: tuple[int, int]
    num_completions: int
    rows_per_microbatch: int = 1

    @classmethod
    def fit(
        cls, mesh: jax.sharding.Mesh, longest_prompt: int, num_completions: int, max_new_tokens: int, rows: int = 1
    ) -> Packing:
        """Rows that hold any example: a prompt and K completions of the longest kind; at least 256 columns."""
        targets = num_completions * max_new_tokens
        columns = max(256, _round_up(longest_prompt + targets, 128))
        slots = _round_up(-(-columns * targets // (longest_prompt + targets)), 64)
        return cls(mesh, (columns, min(slots, columns)), num_completions, rows)

    def batch(self, trees: Sequence[Tree], room: int | None = None) -> Batch:
        """The trees on the mesh; ``room``: examples there may be at most, the same for batches that share a program."""
        return place_batch(*self.pack(trees, room), self.mesh)

    def pack(self, trees: Sequence[Tree], room: int | None = None) -> Packed:
        """The trees in rows, on the host."""
        return pack(
            trees,
            shapes=[self.shape],
            rows_per_microbatch=self.rows_per_microbatch,
            max_microbatches=-(-(room or len(trees)) // self.rows_per_microbatch),
            num_completions=self.num_completions,
        )


def rectangle(trees: Sequence[Tree], name: str, size: int, length: int) -> np.ndarray:
    """A token extra of trees (or their ``masks``) as [size, K, length], 0 where there is none."""
    values = [tree.masks if name == "masks" else tree.token_extras[name] for tree in trees]
    whole = np.zeros((size, len(values[0]), length), values[0][0].dtype)
    for place_, completions in zip(whole, values, strict=False):
        for row, value in zip(place_, completions, strict=True):
            row[: len(value)] = value
    return whole


def with_rectangles(trees: Sequence[Tree], **rectangles: np.ndarray) -> list[Tree]:
    """The trees with more token extras, taken from [B, K, C]."""
    return [
        dataclasses.replace(
            tree,
            token_extras={
                **tree.token_extras,
                **{
                    name: tuple(row[: len(c)] for row, c in zip(whole[i], tree.completions, strict=True))
                    for name, whole in rectangles.items()
                },
            },
        )
        for i, tree in enumerate(trees)
    ]


def make_prepare(
    online: Online,
    packing: Packing,
    *,
    size: int,
    length: int,
    frozen: Mapping[str, Any] | None = None,
    fixed: Any = None,
) -> Prepare:
    """The part of an iteration that looks at the whole batch, compiled once.

    Args:
      online: the method.
      packing: of the measuring pass.
      size: B, the most examples of an iteration.
      length: C, the most tokens of a completion.
      frozen: ``reference``, unless the method state or the base of adapters is the reference. Arrays of NumPy stay on
        the host but for the pass.
      fixed: the part of ``params`` that is not trained.
    Returns:
      (params, method_state, trees) -> (trees, method_state, metrics). Trees come with ``old_logps``, and ``scores`` and
      ``finished`` as extras; they leave with what ``online.step`` needs.
    """
    frozen = dict(frozen or {})

    measure = online.measure

    @jax.jit
    def measured(params: Any, fixed: Any, frozen: Any, batch: Batch) -> Any:
        assert measure is not None
        whole = union(params, fixed)
        return map_microbatches(lambda rows: measure(whole, frozen, rows), batch)

    arithmetic = jax.jit(online.experience)

    def prepare(
        params: Any, method_state: OnlineState, trees: Sequence[Tree]
    ) -> tuple[list[Tree], OnlineState, Metrics]:
        trees = list(trees)
        found: dict[str, Any] = {}
        if measure is not None:
            held = {**frozen, "reference": method_state.reference} if method_state.reference != () else frozen
            packed = packing.pack(attach(trees, index=np.arange(len(trees))), size)
            values = jax.device_get(measured(params, fixed, held, place_batch(*packed, packing.mesh)))
            trees = _back(trees, packed, values)
            found = {name: rectangle(trees, name, size, length) for name in values}
        found["mask"] = rectangle(trees, "masks", size, length)
        found["old_logps"] = rectangle(trees, "old_logps", size, length)
        found |= {name: _stack(trees, name, size) for name in ("scores", "finished")}
        light = method_state._replace(reference=())
        taught, after, metrics = arithmetic(light, Experience(**found))
        trees = with_rectangles(trees, **jax.device_get(taught))
        kept = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), after, light)
        return trees, kept._replace(reference=method_state.reference), _floats(metrics)

    return prepare


def minibatches(count: int, number: int, key: jax.Array) -> list[np.ndarray]:
    """``count`` examples, in random order, in ``number`` sets as equal as can be; empty ones are left out."""
    order = np.asarray(jax.random.permutation(key, count))
    return [part for part in np.array_split(order, number) if len(part)]


def weighted(trees: Sequence[Tree], chosen: Iterable[int], weights: Callable[[Any], Any]) -> list[Tree]:
    """The chosen examples with the weight of every token in the minibatch that they are."""
    picked = [trees[i] for i in chosen]
    length = max(len(c) for tree in picked for c in tree.completions)
    mask = rectangle(picked, "masks", len(picked), length)
    given = np.asarray(weights(jnp.asarray(mask.reshape(-1, length)))).reshape(mask.shape)
    return with_rectangles(picked, weight=given)


class Update(NamedTuple):
    """What ``update`` did."""

    state: TrainState
    metrics: Metrics


def update(
    state: TrainState,
    trees: Sequence[Tree],
    step_fn: Step,
    packing: Packing,
    *,
    key: jax.Array,
    weights: Callable[[Any], Any] | None,
    epochs: int = 1,
    num_minibatches: int = 1,
    size: int | None = None,
    max_kl: float | None = None,
) -> Update:
    """Epochs over minibatches, each an optimiser step.

    Args:
      state: given up to the steps.
      trees: the examples, with all that the step needs.
      step_fn: of ``loop.make_step``.
      packing: of minibatches.
      key: epoch e has the order of ``fold_in(key, e)``.
      weights: of the method; None where the step needs none.
      epochs: passes over the examples.
      num_minibatches: sets of examples that each of them is cut into.
      size: the most examples of an iteration, for one compiled program.
      max_kl: stop after an epoch whose ``policy/approxkl_avg`` is larger.
    Returns:
      the state, and metrics averaged over the steps (the largest, of those that end in ``_max``).
    """
    room = -(-(size or len(trees)) // num_minibatches)
    steps: list[Metrics] = []
    for epoch in range(epochs):
        taken = []
        for chosen in minibatches(len(trees), num_minibatches, jax.random.fold_in(key, epoch)):
            picked = weighted(trees, chosen, weights) if weights else [trees[i] for i in chosen]
            state, metrics = step_fn(state, packing.batch(picked, room))
            taken.append(metrics)
        done = [_floats(metrics) for metrics in taken]  # after the epoch: packing need not wait for the device
        steps += done
        if max_kl is not None and np.mean([each["policy/approxkl_avg"] for each in done]) > max_kl:
            break
    names = steps[0] if steps else {}
    over = {name: [each[name] for each in steps] for name in names}
    mean = {name: float(max(x) if name.endswith("_max") else np.mean(x)) for name, x in over.items()}
    return Update(state, {**mean, "steps": float(len(steps))})


class Iteration(NamedTuple):
    """What an iteration leaves: the state, metrics, seconds of its phases, and the examples."""

    state: TrainState
    metrics: Metrics
    seconds: dict[str, float]
    trees: list[Tree]


def iterate(
    state: TrainState,
    collect: Callable[[Any, int, jax.Array], Collected],
    prepare: Prepare,
    step_fn: Step,
    packing: Packing,
    *,
    iterations: int,
    weights: Callable[[Any], Any] | None,
    size: int | None = None,
    epochs: int = 1,
    num_minibatches: int = 1,
    max_kl: float | None = None,
    refresh: Callable[[Any, Any, Any], Any] | None = None,
) -> Iterator[Iteration]:
    """Iterations up to the ``iterations``-th, from where the state stands.

    Args:
      state: with an ``OnlineState``; a yielded one is donated by the next iteration.
      collect: (params, iteration, key) -> scored trees; see ``collect.Collector``.
      prepare: see ``make_prepare``.
      step_fn: of ``loop.make_step``.
      packing: of minibatches.
      iterations: where to stop.
      weights, size, epochs, num_minibatches, max_kl: as in ``update``.
      refresh: (reference, params, iterations done) -> reference, for a reference in the method state.
    """
    for iteration in range(int(state.method_state.iteration), iterations):
        key = jax.random.fold_in(state.key, iteration)
        trees, collected, seconds = collect(state.params, iteration, jax.random.fold_in(key, 0))
        started = time.perf_counter()
        trees, method_state, measured = prepare(state.params, state.method_state, trees)
        seconds = {**seconds, "prepare": time.perf_counter() - started}
        started = time.perf_counter()
        state, updated = update(
            dataclasses.replace(state, method_state=method_state),
            trees,
            step_fn,
            packing,
            key=jax.random.fold_in(key, 1),
            weights=weights,
            epochs=epochs,
            num_minibatches=num_minibatches,
            size=size,
            max_kl=max_kl,
        )
        if refresh is not None:
            kept = state.method_state
            reference = refresh(kept.reference, state.params, iteration + 1)
            state = dataclasses.replace(state, method_state=kept._replace(reference=reference))
        seconds["update"] = time.perf_counter() - started
        yield Iteration(state, {**collected, **measured, **updated}, seconds, trees)


def _back(trees: Sequence[Tree], packed: Packed, values: Mapping[str, np.ndarray]) -> list[Tree]:
    """The trees, in their order, with the values that were computed for their slots."""
    index = packed.rows.extras["index"]
    rows = dataclasses.replace(packed.rows, extras={"index": index, **values})
    found = {int(tree.extras["index"][0]): tree.token_extras for tree in unpack(Packed(rows, packed.used))}
    return [dataclasses.replace(tree, token_extras={**tree.token_extras, **found[i]}) for i, tree in enumerate(trees)]


def _stack(trees: Sequence[Tree], name: str, size: int) -> Float[np.ndarray, "B K"] | Bool[np.ndarray, "B K"]:
    values = np.stack([tree.extras[name] for tree in trees])
    return np.concatenate([values, np.zeros((size - len(values), *values.shape[1:]), values.dtype)])


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _floats(metrics: Mapping[str, Any]) -> Metrics:
    return {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
