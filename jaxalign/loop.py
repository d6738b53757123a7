"""The loop: a train state threaded through pure steps.

A method is a few pure functions (``Method``); ``make_step`` compiles them with an optimiser into
``step_fn(state, batch) -> (state, metrics)``; ``run`` folds that over batches. Running is a ``for`` that anyone can
write instead::

    for state, metrics in run(step_fn, state, batches):
        ...
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from jaxalign.losses.metrics import Largest, add
from jaxalign.masking import Rows
from jaxalign.models.params import union
from jaxalign.models.sharding import batch_sharding, replicated

T_co = TypeVar("T_co", covariant=True)
# name → (sum, count), or the largest: what microbatches, devices and batches add (``losses.metrics.add``)
Metrics = dict[str, tuple[Array, Array] | Largest]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a run is, as a pytree.

    Attributes:
      step: optimiser steps taken, int32 scalar.
      params: what is trained: the whole tree, or the part that ``fixed`` completes (LoRA's adapters, a head).
      opt_state: the optimiser's state.
      method_state: the method's own (a KL controller, a running baseline); ``()`` where there is none.
      key: the run's root random key; step ``n`` uses ``fold_in(key, n)``.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    method_state: Any
    key: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """One step's examples: ``rows`` with leading axes [M, R, ...], of whose M microbatches the first ``used`` hold any.

    The step runs the used ones only, so batches of different fill share one compiled program. ``mismatched`` holds what
    ``prepare`` alone looks at (KTO's mismatched completions): no gradient, no metric counts it.
    """

    rows: Rows
    used: Int[Array, ""]
    mismatched: Batch | None = None


class Steps(Protocol[T_co]):
    """What is indexed by step: a list, or anything that makes the batch of a step when asked for it."""

    def __len__(self) -> int: ...

    def __getitem__(self, step: int, /) -> T_co: ...


class Method(NamedTuple):
    """The pure functions of a method. ``params`` is the whole tree, whichever part of it is trained.

    prepare(params, frozen, method_state, batch) -> (batch, method_state): what needs the whole batch (reference
      log-probs, baselines, denominators), without gradient.
    loss(params, rows) -> (weighted sum, metrics): one microbatch's share; sums over microbatches are the batch's.
    method_state: the method's own state before the first batch (running means, say), for ``init_state``.
    """

    prepare: Callable[[Any, Any, Any, Batch], tuple[Batch, Any]]
    loss: Callable[[Any, Rows], tuple[Array, Metrics]]
    method_state: Any = ()


@dataclasses.dataclass(frozen=True)
class StepFn:
    """A compiled step and what it holds fixed: ``step_fn(state, batch) -> (state, metrics)``."""

    jitted: Any
    frozen: Any
    fixed: Any = None

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        return self.jitted(state, self.frozen, self.fixed, batch)

    def lower(self, state: TrainState, batch: Batch) -> Any:
        """The step lowered for these arguments (arrays or shapes), to read its program or memory before running it."""
        return self.jitted.lower(state, self.frozen, self.fixed, batch)


def microbatch(rows: Rows, index: Int[Array, ""] | int) -> Rows:
    """The rows of one microbatch: every array without its leading axis."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), rows)


def sum_microbatches(fn: Callable[[Rows], Any], batch: Batch, zeros: Any = None) -> Any:
    """Σ over used microbatches of fn(rows), a pytree of arrays; a loop of dynamic length, not differentiable."""
    if zeros is None:
        zeros = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(lambda: fn(microbatch(batch.rows, 0)))
        )

    def body(index: Int[Array, ""], total: Any) -> Any:
        return add(total, fn(microbatch(batch.rows, index)))

    return jax.lax.fori_loop(0, batch.used, body, zeros)


def map_microbatches(fn: Callable[[Rows], Any], batch: Batch) -> Any:
    """fn(rows) of each used microbatch, stacked [M, ...]; zeros for the others."""
    shapes = jax.eval_shape(lambda: fn(microbatch(batch.rows, 0)))
    count = batch.rows.tokens.shape[0]
    out = jax.tree.map(lambda s: jnp.zeros((count, *s.shape), s.dtype), shapes)

    def body(index: Int[Array, ""], out: Any) -> Any:
        return jax.tree.map(lambda o, y: o.at[index].set(y), out, fn(microbatch(batch.rows, index)))

    return jax.lax.fori_loop(0, batch.used, body, out)


def order_by_index(results: Iterable[tuple[Array, Batch]]) -> np.ndarray:
    """What was computed for each example slot ``[M, R, E, ...]`` of batches, in the order of ``extras["index"]``.

    Raises:
      ValueError: if the batches carry no index, or their examples are not 0, 1, …, N - 1.
    """
    found: dict[int, np.ndarray] = {}
    for result, batch in results:
        rows = batch.rows
        if "index" not in rows.extras:
            raise ValueError("the batches carry no index of their examples: make them with data.batches.")
        values, index, used = jax.device_get((result, rows.extras["index"], rows.example_mask))
        found.update(zip(index[used][:, 0].tolist(), values[used], strict=True))
    if sorted(found) != list(range(len(found))):
        raise ValueError(f"the batches hold {len(found)} examples that are not all of 0 to {max(found)}.")
    return np.stack([found[i] for i in range(len(found))])


def per_example(
    function: Callable[[Any, Any, Rows], Array], model: Any, params: Any, batches: Iterable[Batch]
) -> np.ndarray:
    """Returns ``function(model, params, rows)``, [R, E, ...], of every example, in the order of ``extras["index"]``.

    ``function`` is compiled once per function and model: give one of a module, not a closure.
    """
    return order_by_index((_per_microbatch(function, model, params, batch), batch) for batch in batches)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _per_microbatch(function: Any, model: Any, params: Any, batch: Batch) -> Array:
    return map_microbatches(lambda rows: function(model, params, rows), batch)


def gradients(
    method: Method,
    params: Any,
    frozen: Any,
    method_state: Any,
    batch: Batch,
    shardings: Any = None,
    *,
    fixed: Any = None,
) -> Any:
    """(loss, metrics), gradient and new method state of one batch, whatever the microbatches it is cut into.

    The gradient is to ``params``; ``fixed`` completes their tree and gets none, nor any computation of it.
    ``shardings`` pins the accumulated gradient to where the parameters lie.
    """
    pin = (lambda g: g) if shardings is None else (lambda g: jax.lax.with_sharding_constraint(g, shardings))
    batch, method_state = method.prepare(union(params, fixed), frozen, method_state, batch)
    batch = jax.lax.stop_gradient(batch)

    def loss(params: Any, rows: Rows) -> tuple[Array, Metrics]:
        return method.loss(union(params, fixed), rows)

    value_and_grad = jax.value_and_grad(loss, has_aux=True)

    def one(rows: Rows) -> Any:
        value, grads = value_and_grad(params, rows)
        return value, pin(grads)

    value_shape = jax.eval_shape(loss, params, microbatch(batch.rows, 0))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), value_shape)
    value, grads = sum_microbatches(one, batch, (zeros, pin(jax.tree.map(jnp.zeros_like, params))))
    return value, grads, method_state


def averages(metrics: Metrics) -> dict[str, Array]:
    """sum / count of each metric, NaN where nothing was counted (an answer of that kind, say); the largest as it is."""
    return {name: each.value if isinstance(each, Largest) else _mean(*each) for name, each in metrics.items()}


def _mean(total: Any, count: Any) -> Array:
    return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)


def init_state(
    params: Any, optimizer: optax.GradientTransformation, key: Array, *, method_state: Any = ()
) -> TrainState:
    """A run's first state; the optimiser's moments lie where the parameters they mirror do.

    The state is donated to the step: copy ``params`` first if anything else (a reference) still needs them.
    """
    shapes = jax.eval_shape(optimizer.init, params)
    everywhere = _whole(params)

    def mirror(leaf: Any, param: Any) -> Any:
        return param.sharding if leaf.shape == param.shape else everywhere  # factored optimisers keep smaller leaves

    place = optax.tree.map_params(optimizer, mirror, shapes, params, transform_non_params=lambda _: everywhere)
    # Copies: what the caller still holds must outlive the state that the step donates.
    # (Compiled, since ``device_put`` puts no keys on the devices of other processes.)
    spread = jax.jit(functools.partial(jax.tree.map, jnp.copy), out_shardings=everywhere)
    step, key, method_state = spread((jnp.zeros((), jnp.int32), key, method_state))
    return TrainState(step, params, jax.jit(optimizer.init, out_shardings=place)(params), method_state, key)


def _whole(params: Any) -> Any:
    """The sharding of what every device of the parameters' mesh holds whole."""
    sharding = jax.tree.leaves(params)[0].sharding
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return sharding


def make_step(
    method: Method,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    *,
    frozen: Any = None,
    fixed: Any = None,
    learning_rate: Callable[[Any], Any] | None = None,
) -> StepFn:
    """Compile one optimiser step: prepare, accumulate the gradient over microbatches, update.

    Args:
      method: the method's functions.
      optimizer: any optax transformation.
      state: the state to start from; read only for where its arrays lie, which is where the step leaves them.
      frozen: what the method holds beside the policy (a reference's parameters); never donated.
      fixed: the part of the policy's own tree that is not trained; never donated.
      learning_rate: the schedule, only to report it.
    Returns:
      ``step_fn(state, batch) -> (state, metrics)``. The given state is donated: its buffers are reused.
    """
    places = jax.tree.map(lambda x: x.sharding, state)

    def step(state: TrainState, frozen: Any, fixed: Any, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        (loss, metrics), grads, method_state = gradients(
            method, state.params, frozen, state.method_state, batch, places.params, fixed=fixed
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        report = {"loss": loss, **averages(metrics), "grad_norm": optax.tree.norm(grads)}
        report["num_tokens"] = jnp.sum(batch.rows.example >= 0)
        if learning_rate is not None:
            report["learning_rate"] = jnp.asarray(learning_rate(state.step))
        return TrainState(state.step + 1, params, opt_state, method_state, state.key), report

    where_frozen, where_fixed = jax.tree.map(lambda x: x.sharding, (frozen, fixed))
    jitted = jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(places, where_frozen, where_fixed, None),  # a batch lies where ``place_batch`` put it
        out_shardings=(places, _whole(state.params)),
    )
    return StepFn(jitted, frozen, fixed)


def make_eval(
    method: Method, *, frozen: Any = None, fixed: Any = None
) -> Callable[[Any, Any, Iterable[Batch]], dict[str, float]]:
    """Compile evaluation: ``evaluate(params, method_state, batches) -> metrics`` over all examples of all batches.

    The loss is averaged with the examples' counts (or those under which the method itself reports ``loss``), so how
    batches are cut does not change the result.
    """

    @jax.jit
    def sums(params: Any, frozen: Any, fixed: Any, method_state: Any, batch: Batch) -> Metrics:
        params = union(params, fixed)
        batch, _ = method.prepare(params, frozen, method_state, batch)
        loss, metrics = sum_microbatches(lambda rows: method.loss(params, rows), batch)
        count = jnp.sum(batch.rows.example_mask)
        return {"loss": (loss * count, count), **metrics}

    def evaluate(params: Any, method_state: Any, batches: Iterable[Batch]) -> dict[str, float]:
        total: Metrics = {}
        for batch in batches:
            new = jax.device_get(sums(params, frozen, fixed, method_state, batch))
            total = add(total, new) if total else new
        return {name: float(value) for name, value in averages(total).items()}

    return evaluate


def place_batch(rows: Rows, used: int, mesh: jax.sharding.Mesh, mismatched: tuple[Rows, int] | None = None) -> Batch:
    """Put a packed batch of NumPy arrays [M, R, ...] on the mesh, its rows split over the data and fsdp axes.

    ``mismatched`` is put there likewise, as ``Batch.mismatched``.

    Raises:
      ValueError: if data × fsdp does not divide the rows of a microbatch.
    """
    sharding = batch_sharding(mesh)
    count, devices = rows.tokens.shape[1], mesh.shape["data"] * mesh.shape["fsdp"]
    if count % devices:
        raise ValueError(
            f"rows_per_microbatch is {count}, but the mesh spreads rows over data × fsdp = {devices} devices."
        )
    put = lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])  # noqa: E731
    number = jax.device_put(jnp.asarray(used, jnp.int32), replicated(mesh))
    return Batch(jax.tree.map(put, rows), number, None if mismatched is None else place_batch(*mismatched, mesh))


@dataclasses.dataclass(frozen=True)
class OnMesh:
    """Packed batches, each placed on a mesh when indexed: ``OnMesh(batches, mesh)[i]`` places ``batches[i]``."""

    batches: Steps[tuple[Rows, int]] | Steps[tuple[Rows, int, tuple[Rows, int]]]
    mesh: jax.sharding.Mesh

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, step: int) -> Batch:
        rows, used, *mismatched = self.batches[step]
        return place_batch(rows, used, self.mesh, *mismatched)

    def __iter__(self) -> Iterator[Batch]:
        return (self[step] for step in range(len(self)))


def run(
    step_fn: StepFn,
    state: TrainState,
    batches: Steps[Batch],
    *,
    steps: int | None = None,
    checkpoints: Any = None,
    every: int = 0,
) -> Iterator[tuple[TrainState, dict[str, Array]]]:
    """Fold ``step_fn`` over ``batches``, yielding each new state and its metrics.

    Args:
      step_fn: ``(state, batch) -> (state, metrics)``.
      state: where to start; its ``step`` is also the position in ``batches``, so a restored state goes on where it was.
      batches: indexed by step.
      steps: the step to stop at; by default when ``batches`` end.
      checkpoints: anything with ``save(state)``, called before the yield of every ``every``-th step and the last.
      every: how often to save; 0 for the last step only.

    A yielded state is donated by the next iteration: use it before going on, and do not keep it.
    """
    stop = len(batches) if steps is None else steps
    for position in range(int(state.step), stop):
        state, metrics = step_fn(state, batches[position])
        done = position + 1
        if checkpoints is not None and (done == stop or (every and done % every == 0)):
            checkpoints.save(state)
        yield state, metrics
