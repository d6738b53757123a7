"""The training loop: a train state passed through pure steps.

A method is a few pure functions (``Method``). ``make_step`` compiles them with an optimiser into
``step_fn(state, batch) -> (state, metrics)``, and ``run`` folds that over batches. You can write the ``for`` loop
yourself instead::

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

from jaxalign.losses.metrics import Largest, add, mean
from jaxalign.masking import Rows
from jaxalign.models.params import union
from jaxalign.models.sharding import batch_sharding, replicated

T_co = TypeVar("T_co", covariant=True)
# Metrics by name, as (sum, count) or the largest. ``losses.metrics.add`` adds those of microbatches and batches.
Metrics = dict[str, tuple[Array, Array] | Largest]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The complete state of a training run, as a pytree.

    Attributes:
        step: number of optimiser steps taken, int32 scalar.
        params: trained parameters: the whole tree, or the part that ``fixed`` completes (LoRA adapters, a head).
        opt_state: state of the optimiser.
        method_state: state of the method (a KL controller, a running baseline); ``()`` if the method has none.
        key: root random key of the run; step ``n`` uses ``fold_in(key, n)``.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    method_state: Any
    key: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Examples of one step, as M microbatches.

    The step runs only the microbatches that contain examples, so batches of different fill share one compiled program.

    Attributes:
        rows: packed prompt trees with leading axes ``[M, R, ...]``.
        used: only the first ``used`` of the M microbatches contain examples, int32 scalar.
        mismatched: KTO's mismatched completions, an input of ``prepare`` only: they get no gradient and no metric.
    """

    rows: Rows
    used: Int[Array, ""]
    mismatched: Batch | None = None

    def with_extras(self, **extras: Any) -> Batch:
        """Returns the batch with further inputs in ``rows.extras``."""
        return dataclasses.replace(self, rows=dataclasses.replace(self.rows, extras={**self.rows.extras, **extras}))


class Steps(Protocol[T_co]):
    """A sequence indexed by step: a list, or an object that makes the batch of a step on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, step: int, /) -> T_co: ...


class Method(NamedTuple):
    """The pure functions of a method. Their ``params`` is the whole tree, even if only a part of it is trained.

    Attributes:
        prepare: ``(params, frozen, method_state, batch) -> (batch, method_state)``, without gradient. It computes what
            needs the whole batch, such as reference log-probabilities, baselines and denominators.
        loss: ``(params, rows) -> (weighted sum, metrics)`` of one microbatch. Both add up to those of the batch.
        method_state: state of the method before the first batch (for example running means), for ``init_state``.
    """

    prepare: Callable[[Any, Any, Any, Batch], tuple[Batch, Any]]
    loss: Callable[[Any, Rows], tuple[Array, Metrics]]
    method_state: Any = ()


@dataclasses.dataclass(frozen=True)
class StepFn:
    """A compiled step with its constant arguments: ``step_fn(state, batch) -> (state, metrics)``.

    Attributes:
        jitted: the compiled function of (state, frozen, fixed, batch), which donates the state.
        frozen: further parameters of the method, such as those of the reference.
        fixed: the part of the policy's parameters that is not trained.
    """

    jitted: Any
    frozen: Any
    fixed: Any = None

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        """Runs one step, which donates the state."""
        return self.jitted(state, self.frozen, self.fixed, batch)

    def lower(self, state: TrainState, batch: Batch) -> Any:
        """Lowers the step for arrays or shapes, so that its program and memory can be read before a run."""
        return self.jitted.lower(state, self.frozen, self.fixed, batch)


def microbatch(rows: Rows, index: Int[Array, ""] | int) -> Rows:
    """Returns the rows of one microbatch: every array without its leading axis."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), rows)


def sum_microbatches(fn: Callable[[Rows], Any], batch: Batch, zeros: Any = None) -> Any:
    """Sums fn(rows), a pytree of arrays, over the used microbatches.

    The loop has dynamic length, so it is not differentiable. ``zeros`` is where the sum starts, by default zeros of
    the shapes that ``fn`` returns.
    """
    if zeros is None:
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: fn(microbatch(batch.rows, 0))))

    def body(index: Int[Array, ""], total: Any) -> Any:
        return add(total, fn(microbatch(batch.rows, index)))

    return jax.lax.fori_loop(0, batch.used, body, zeros)


def map_microbatches(fn: Callable[[Rows], Any], batch: Batch) -> Any:
    """Stacks fn(rows) of the used microbatches, ``[M, ...]``, with zeros for the others."""
    shapes = jax.eval_shape(lambda: fn(microbatch(batch.rows, 0)))
    count = batch.rows.tokens.shape[0]
    out = jax.tree.map(lambda s: jnp.zeros((count, *s.shape), s.dtype), shapes)

    def body(index: Int[Array, ""], out: Any) -> Any:
        return jax.tree.map(lambda o, y: o.at[index].set(y), out, fn(microbatch(batch.rows, index)))

    return jax.lax.fori_loop(0, batch.used, body, out)


def order_by_index(results: Iterable[tuple[Array, Batch]]) -> np.ndarray:
    """Returns results per example in the order of the examples' ``extras["index"]``.

    Args:
        results: pairs of values per example slot, ``[M, R, E, ...]``, and the batch they belong to.

    Returns:
        the values, ``[N, ...]``.

    Raises:
        ValueError: if the batches have no index, or their examples are not 0, 1, …, N - 1.
    """
    by_index: dict[int, np.ndarray] = {}
    for result, batch in results:
        rows = batch.rows
        if "index" not in rows.extras:
            raise ValueError("The batches have no index of their examples. Make them with data.batches.")
        values, index, used = jax.device_get((result, rows.extras["index"], rows.example_mask))
        by_index.update(zip(index[used][:, 0].tolist(), values[used], strict=True))
    if sorted(by_index) != list(range(len(by_index))):
        raise ValueError(
            f"The batches contain {len(by_index)} examples, not all of 0 to {max(by_index)}. Pass every batch."
        )
    return np.stack([by_index[i] for i in range(len(by_index))])


def per_example(
    function: Callable[[Any, Any, Rows], Array], model: Any, params: Any, batches: Iterable[Batch]
) -> np.ndarray:
    """Computes values per example, in the order of the examples' ``extras["index"]``.

    Args:
        function: ``(model, params, rows) -> values``, ``[R, E, ...]``. It is compiled once per function and model, so
            pass a function of a module: a new closure would compile on every call.
        model: static, hashable argument of ``function``.
        params: parameters of the model.
        batches: all examples, with their index.

    Returns:
        the values, ``[N, ...]``.
    """
    return order_by_index((_per_microbatch(function, model, params, batch), batch) for batch in batches)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _per_microbatch(function: Any, model: Any, params: Any, batch: Batch) -> Array:
    """Computes ``function`` of each microbatch, ``[M, R, E, ...]``."""
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
    """Computes loss, gradient and new method state of one batch, however it is cut into microbatches.

    Args:
        method: functions of the method.
        params: trained parameters, to which the gradient is taken.
        frozen: further parameters of the method.
        method_state: state of the method.
        batch: examples of the step.
        shardings: shardings of ``params``, imposed on the accumulated gradient; by default the compiler chooses.
        fixed: the rest of the policy's parameters; no gradient to it is computed.

    Returns:
        ``((loss, metrics), gradient, method_state)``.
    """
    pin = (lambda g: g) if shardings is None else (lambda g: jax.lax.with_sharding_constraint(g, shardings))
    batch, method_state = method.prepare(union(params, fixed), frozen, method_state, batch)
    batch = jax.lax.stop_gradient(batch)

    def loss(params: Any, rows: Rows) -> tuple[Array, Metrics]:
        return method.loss(union(params, fixed), rows)

    def microbatch_gradient(rows: Rows) -> Any:
        value, grads = jax.value_and_grad(loss, has_aux=True)(params, rows)
        return value, pin(grads)

    shapes = (jax.eval_shape(loss, params, microbatch(batch.rows, 0)), params)
    value_zeros, gradient_zeros = jax.tree.map(jnp.zeros_like, shapes)
    value, grads = sum_microbatches(microbatch_gradient, batch, (value_zeros, pin(gradient_zeros)))
    return value, grads, method_state


def init_state(
    params: Any, optimizer: optax.GradientTransformation, key: Array, *, method_state: Any = ()
) -> TrainState:
    """Returns the first state of a run; the optimiser's moments are sharded as the parameters they belong to.

    Args:
        params: trained parameters. The step donates them: copy them first if a reference still needs them.
        optimizer: any optax transformation.
        key: root random key; copied.
        method_state: state of the method; copied.

    Returns:
        the state at step 0.
    """
    shapes = jax.eval_shape(optimizer.init, params)
    everywhere = _replicated_like(params)

    def sharding_of(leaf: Any, param: Any) -> Any:
        # Factored optimisers keep leaves smaller than their parameter, which its sharding may not divide.
        return param.sharding if leaf.shape == param.shape else everywhere

    shardings = optax.tree.map_params(optimizer, sharding_of, shapes, params, transform_non_params=lambda _: everywhere)
    # Copies, because the caller's arrays must outlive the state that the step donates. Compiled, because
    # ``device_put`` does not put keys on the devices of other processes.
    replicate = jax.jit(functools.partial(jax.tree.map, jnp.copy), out_shardings=everywhere)
    step, key, method_state = replicate((jnp.zeros((), jnp.int32), key, method_state))
    return TrainState(step, params, jax.jit(optimizer.init, out_shardings=shardings)(params), method_state, key)


def _replicated_like(params: Any) -> Any:
    """Returns the sharding of an array that every device of the parameters' mesh holds in full."""
    sharding = jax.tree.leaves(params)[0].sharding
    return replicated(sharding.mesh) if isinstance(sharding, jax.sharding.NamedSharding) else sharding


def make_step(
    method: Method,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    *,
    frozen: Any = None,
    fixed: Any = None,
    learning_rate: Callable[[Any], Any] | None = None,
) -> StepFn:
    """Compiles one optimiser step: prepare, accumulate the gradient over microbatches, update.

    Args:
        method: functions of the method.
        optimizer: any optax transformation.
        state: first state, of which only the shardings are read; the step keeps them.
        frozen: further parameters of the method, such as those of the reference; not donated.
        fixed: the part of the policy's parameters that is not trained; not donated.
        learning_rate: the schedule, only to report it.

    Returns:
        ``step_fn(state, batch) -> (state, metrics)``. It donates its state: do not use that state afterwards.
    """
    shardings = jax.tree.map(lambda x: x.sharding, state)

    def step(state: TrainState, frozen: Any, fixed: Any, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        (loss, metrics), grads, method_state = gradients(
            method, state.params, frozen, state.method_state, batch, shardings.params, fixed=fixed
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        report = {"loss": loss, **mean(metrics), "grad_norm": optax.tree.norm(grads)}
        report["num_tokens"] = jnp.sum(batch.rows.example >= 0)
        if learning_rate is not None:
            report["learning_rate"] = jnp.asarray(learning_rate(state.step))
        return TrainState(state.step + 1, params, opt_state, method_state, state.key), report

    others = jax.tree.map(lambda x: x.sharding, (frozen, fixed))
    jitted = jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, *others, None),  # None: as ``place_batch`` sharded the batch
        out_shardings=(shardings, _replicated_like(state.params)),
    )
    return StepFn(jitted, frozen, fixed)


def make_eval(
    method: Method, *, frozen: Any = None, fixed: Any = None
) -> Callable[[Any, Any, Iterable[Batch]], dict[str, float]]:
    """Compiles an evaluation over all examples of all batches.

    The loss is averaged over examples (or over what the method counts, if it reports ``loss`` itself). So the result
    does not depend on how examples are batched.

    Args:
        method: functions of the method.
        frozen: further parameters of the method, such as those of the reference.
        fixed: the part of the policy's parameters that is not trained.

    Returns:
        ``evaluate(params, method_state, batches) -> metrics``.
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
            metrics = jax.device_get(sums(params, frozen, fixed, method_state, batch))
            total = add(total, metrics) if total else metrics
        return {name: float(value) for name, value in mean(total).items()}

    return evaluate


def place_batch(rows: Rows, used: int, mesh: jax.sharding.Mesh, mismatched: tuple[Rows, int] | None = None) -> Batch:
    """Puts a packed batch on a mesh, with its rows R split over the data and fsdp axes.

    Args:
        rows: packed trees as NumPy arrays, ``[M, R, ...]``.
        used: number of microbatches that contain examples.
        mesh: devices, with axes data, fsdp and tensor.
        mismatched: rows and used of KTO's mismatched completions, for ``Batch.mismatched``.

    Returns:
        the batch on the devices.

    Raises:
        ValueError: if data × fsdp does not divide the rows of a microbatch.
    """
    sharding = batch_sharding(mesh)
    count, devices = rows.tokens.shape[1], mesh.shape["data"] * mesh.shape["fsdp"]
    if count % devices:
        raise ValueError(
            f"rows_per_microbatch is {count}, but the mesh splits rows over data × fsdp = {devices} devices. "
            f"Give a multiple of {devices}."
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
    """Folds ``step_fn`` over ``batches`` and yields each new state with its metrics.

    The next iteration donates the yielded state: use it before the loop continues, and do not keep it.

    Args:
        step_fn: ``(state, batch) -> (state, metrics)``.
        state: first state. Its ``step`` is the position in ``batches``, so a restored state continues where it stopped.
        batches: batches, indexed by step.
        steps: number of the last step; by default the number of batches.
        checkpoints: an object with ``save(state)``, called before the yield of every ``every``-th step and the last.
        every: steps between two saves; 0 saves the last step only.

    Yields:
        ``(state, metrics)`` after each step.
    """
    stop = len(batches) if steps is None else steps
    for position in range(int(state.step), stop):
        state, metrics = step_fn(state, batches[position])
        done = position + 1
        if checkpoints is not None and (done == stop or (every and done % every == 0)):
            checkpoints.save(state)
        yield state, metrics
