"""Optimisers: the optax functions they are made of, the decay mask, the schedule."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign import optim
from jaxalign.errors import UserError
from jaxalign.optim import OptimConfig


def trees():
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "embed": {"embedding": jax.random.normal(keys[0], (5, 4))},
        "layers": {"norm": {"scale": jnp.ones((3, 4))}, "q": {"kernel": jax.random.normal(keys[1], (3, 4, 4))}},
        "out": {"bias": jnp.ones((4,))},
    }
    grads = jax.tree.map(lambda p: jax.random.normal(keys[2], p.shape), params)
    return params, grads


def run(optimizer, params, grads, steps=4):
    @jax.jit
    def step(params, state, scale):
        updates, state = optimizer.update(jax.tree.map(lambda g: scale * g, grads), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for i in range(steps):
        params, state = step(params, state, 1.0 - 0.3 * i)
    return params


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("adamw", lambda rate: optax.adamw(rate, 0.8, 0.95, 1e-6, weight_decay=0.1, mask=optim.decay_mask)),
        ("lion", lambda rate: optax.lion(rate, 0.8, 0.95, weight_decay=0.1, mask=optim.decay_mask)),
    ],
)
def test_same_as_the_optax_optimiser_behind_a_clip(name, reference):
    config = OptimConfig(
        name, 0.1, schedule="cosine", warmup_steps=1, weight_decay=0.1, b1=0.8, b2=0.95, eps=1e-6, max_grad_norm=0.5
    )
    optimizer, schedule = optim.make_optimizer(config, num_steps=8)
    params, grads = trees()
    expected = run(optax.chain(optax.clip_by_global_norm(0.5), reference(schedule)), params, grads)
    for got, want in zip(jax.tree.leaves(run(optimizer, params, grads)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "sgd"])
def test_every_optimiser_goes_downhill_and_keeps_shapes(name):
    optimizer, _ = optim.make_optimizer(
        OptimConfig(name, 0.05, schedule="constant", warmup_steps=0, b1=0.5), num_steps=60
    )
    target = {"kernel": jnp.arange(6.0).reshape(2, 3) / 6}

    def loss(params):
        return jnp.sum((params["kernel"] - target["kernel"]) ** 2)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = {"kernel": jnp.zeros((2, 3))}
    state = optimizer.init(params)
    for _ in range(60):
        params, state = step(params, state)
    assert params["kernel"].shape == (2, 3)
    assert loss(params) < 0.02 * loss({"kernel": jnp.zeros((2, 3))})


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "sgd"])
def test_decay_is_rate_times_coefficient_and_spares_scales_and_biases(name):
    config = OptimConfig(name, 0.1, schedule="constant", warmup_steps=0, weight_decay=0.5)
    params, _ = trees()
    moved = run(optim.make_optimizer(config, 1)[0], params, jax.tree.map(jnp.zeros_like, params), steps=1)
    np.testing.assert_allclose(moved["layers"]["q"]["kernel"], 0.95 * params["layers"]["q"]["kernel"], rtol=1e-6)
    np.testing.assert_allclose(moved["embed"]["embedding"], 0.95 * params["embed"]["embedding"], rtol=1e-6)
    np.testing.assert_array_equal(moved["layers"]["norm"]["scale"], params["layers"]["norm"]["scale"])
    np.testing.assert_array_equal(moved["out"]["bias"], params["out"]["bias"])


def test_gradients_are_clipped_to_the_global_norm():
    config = OptimConfig("sgd", 1.0, schedule="constant", warmup_steps=0, b1=0.0, max_grad_norm=0.25)
    params, grads = trees()
    moved = run(optim.make_optimizer(config, 1)[0], params, grads, steps=1)
    difference = jax.tree.map(lambda a, b: a - b, moved, params)
    np.testing.assert_allclose(optax.tree.norm(difference), 0.25, rtol=1e-5)
    free = run(optim.make_optimizer(dataclasses.replace(config, max_grad_norm=None), 1)[0], params, grads, steps=1)
    np.testing.assert_allclose(free["out"]["bias"], params["out"]["bias"] - grads["out"]["bias"], rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("constant", 2.0, 2.0), ("linear", 1.1, 0.2), ("cosine", 1.1, 0.2)]
)
def test_schedule_rises_to_the_peak_and_ends_at_the_final_fraction(schedule, middle, end):
    config = OptimConfig(learning_rate=2.0, schedule=schedule, warmup_ratio=0.2, final_fraction=0.1)
    rate = optim.make_schedule(config, num_steps=100)
    np.testing.assert_allclose([rate(0), rate(10), rate(20), rate(60), rate(100)], [0, 1, 2, middle, end], rtol=1e-6)


def test_warmup_steps_take_precedence_and_no_warmup_starts_at_the_peak():
    assert optim.make_schedule(OptimConfig(learning_rate=1.0, warmup_steps=4), 8)(2) == 0.5
    assert optim.make_schedule(OptimConfig(learning_rate=1.0, warmup_ratio=0.0), 8)(0) == 1.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": -1.0}, "optim.learning_rate is -1.0"),
        ({"learning_rate": float("nan")}, "optim.learning_rate is nan"),
        ({"warmup_ratio": 1.5}, "from 0 to 1"),
        ({"b1": 1.0}, "optim.b1 is 1.0. Give a number from 0 to below 1"),
        ({"b2": 1.0}, "optim.b2 is 1.0"),
        ({"max_grad_norm": 0.0}, "optim.max_grad_norm is 0.0. Give a number above 0"),
        ({"max_grad_norm": float("inf")}, "optim.max_grad_norm is inf"),
        ({"warmup_steps": 9}, "the run has 8 steps"),
    ],
)
def test_impossible_numbers_are_a_user_error(changes, words):
    with pytest.raises(UserError, match=words):
        optim.make_optimizer(OptimConfig(**changes), num_steps=8)
