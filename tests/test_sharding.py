"""Ten DPO steps on eight virtual devices give the single-device run, and the compiled step stays small."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign.data.trees import pack
from jaxalign.errors import UserError
from jaxalign.loop import gradients, init_state, make_step, place_batch
from jaxalign.methods import dpo
from jaxalign.models.model import Model
from jaxalign.models.sharding import make_mesh, replicated_axes
from tests.test_tree_forward import random_trees

MESHES = [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8)]


def train(config, shape, steps=10):
    """First gradient, parameters before and after; all meshes start from the parameters that one device draws."""
    start = jax.tree.map(np.asarray, Model(config).init(jax.random.key(0)))
    model = Model(config, mesh=make_mesh(*shape))
    params = jax.device_put(start, model.param_shardings())
    frozen = jax.tree.map(jnp.copy, params)
    method, optimizer = dpo.dpo(model, beta=0.5), optax.adamw(1e-3)
    # Rows in numbers that every mesh divides; the examples of a step are the same on all.
    batches = [
        place_batch(*pack(random_trees(16, seed=s), row_lengths=(64,), rows_per_microbatch=8), model.mesh)
        for s in range(steps)
    ]
    grads = jax.jit(lambda p, f, b: gradients(method, p, f, (), b)[1])(params, frozen, batches[0])
    grads = jax.tree.map(np.asarray, grads)
    state = init_state(params, optimizer, jax.random.key(1))
    step = make_step(method, optimizer, state, frozen=frozen)
    for batch in batches:
        state, _ = step(state, batch)
    return grads, start, jax.tree.map(np.asarray, state.params)


def distance(a, b):
    return math.sqrt(
        sum(float(np.sum((x - y) ** 2)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    )


@pytest.fixture(scope="module")
def single(tiny_config):
    return train(tiny_config, (1, 1, 1))


@pytest.mark.parametrize(
    "shape",
    [(2, 2, 2), *(pytest.param(shape, marks=pytest.mark.thorough) for shape in MESHES if shape != (2, 2, 2))],
    ids=str,
)
def test_sharded_run_is_the_single_device_run(tiny_config, single, shape):
    grads, _, end = train(tiny_config, shape)
    want, first, last = single
    zeros = jax.tree.map(np.zeros_like, want)
    assert distance(grads, want) <= 1e-5 * distance(want, zeros)
    assert distance(end, last) <= 1e-3 * distance(last, first)


def compiled_step(config, shape):
    """The step's program as text, its batch and its state."""
    model = Model(config, mesh=make_mesh(*shape))
    params = model.init(jax.random.key(0))
    frozen = jax.tree.map(jnp.copy, params)
    optimizer = optax.adamw(1e-3)
    state = init_state(params, optimizer, jax.random.key(1))
    step = make_step(dpo.dpo(model, beta=0.5), optimizer, state, frozen=frozen)
    batch = place_batch(*pack(random_trees(16, longest=40), row_lengths=(128,), rows_per_microbatch=8), model.mesh)
    return step.lower(state, batch).compile().as_text(), batch, state


@pytest.mark.parametrize(
    "shape", [(2, 2, 2), *(pytest.param(s, marks=pytest.mark.thorough) for s in [(1, 1, 1), *MESHES] if s != (2, 2, 2))]
)
def test_compiled_step_is_small(tiny_config, shape):
    """No tokens × vocabulary, and no whole stack of a layer parameter on a device that should hold a part.

    (One layer's parameters, and the embedding, are gathered over fsdp while they are in use.)
    """
    config = dataclasses.replace(tiny_config, vocab_size=32768, num_hidden_layers=3)
    hlo, batch, state = compiled_step(config, shape)
    arrays = {tuple(map(int, dims.split(","))) for dims in re.findall(r"\b(?:f32|bf16|f64|s32|pred)\[([\d,]+)\]", hlo)}
    rows = 8 // (shape[0] * shape[1])
    tokens_by_vocabulary = rows * batch.rows.source.shape[-1] * config.vocab_size // shape[2]
    assert max(map(math.prod, arrays)) < tokens_by_vocabulary
    split = [p for p in jax.tree.leaves(state.params["layers"]) if not p.sharding.is_fully_replicated]
    assert bool(split) == (shape[1] * shape[2] > 1)
    assert not {tuple(sorted(p.shape)) for p in split} & {tuple(sorted(shape)) for shape in arrays}  # in any layout


def test_an_axis_that_does_not_divide_is_named(tiny_config):
    config = dataclasses.replace(tiny_config, num_key_value_heads=2)
    reasons = replicated_axes(config, make_mesh(1, 1, 8))
    assert set(reasons) == {"kv_heads"}
    assert "tensor=8" in reasons["kv_heads"]


def test_a_mesh_larger_than_the_machine_is_refused():
    with pytest.raises(UserError, match="needs 16 devices, this machine has 8"):
        make_mesh(16)
