"""On eight virtual devices, KTO's update and whole iterations with sampling give the results of one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign.loop import init_state, make_step
from jaxalign.methods import experience, kto, ppo
from jaxalign.methods.collect import Collector, Sampler
from jaxalign.methods.rollouts import Packing, iterate, make_prepare, update
from jaxalign.models.model import Model
from jaxalign.models.sharding import make_mesh
from tests.methods.test_kto import batch_of, labelled_trees

pytestmark = pytest.mark.thorough
SHAPE = (2, 2, 2)
B, K, LENGTH = 8, 2, 6


def models(config, shape):
    """A model on a mesh, a policy, and a reference some way off; the same numbers on every mesh."""
    drawn = jax.tree.map(np.asarray, Model(config).init(jax.random.key(0)))
    model = Model(config, mesh=make_mesh(*shape))
    policy = jax.device_put(drawn, model.param_shardings())
    return model, policy, jax.tree.map(lambda p: 0.9 * p, policy)


def close(sharded, want, start):
    """Parameters to 1e-3 of how far they went."""
    moved = optax.tree.norm(jax.tree.map(np.subtract, want, start))
    assert moved > 1e-3
    assert optax.tree.norm(jax.tree.map(np.subtract, sharded, want)) <= 1e-3 * moved


def kto_step(config, shape):
    model, policy, reference = models(config, shape)
    state = init_state(jax.tree.map(jnp.copy, policy), optax.sgd(0.1), jax.random.key(1))
    step = make_step(kto.kto(model, beta=0.5), optax.sgd(0.1), state, frozen=reference)
    batch, _ = batch_of(labelled_trees(32), model.mesh, length=64, rows=8)
    state, metrics = step(state, batch)
    return jax.tree.map(np.asarray, (state.params, policy)), {name: float(value) for name, value in metrics.items()}


def test_kto_and_its_baseline(tiny_config):
    (sharded, _), metrics = kto_step(tiny_config, SHAPE)
    (want, start), expected = kto_step(tiny_config, (1, 1, 1))
    close(sharded, want, start)
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def iteration(config, shape):
    """The completions, metrics and parameters of an iteration of PPO, which has all that the others have."""
    model, policy, reference = models(config, shape)
    online = ppo.ppo(model)
    params = {"policy": policy, "value": ppo.value_head(model)}
    start = jax.tree.map(np.asarray, params)
    optimizer = optax.sgd(0.05)
    state = init_state(params, optimizer, jax.random.key(1), method_state=experience.init_state(0.05))
    step = make_step(online.step, optimizer, state)
    packing = Packing(model.mesh, (64, 64), K, 8)
    prepare = make_prepare(online, packing, size=B, length=LENGTH, frozen={"reference": reference})
    sampler = Sampler(model, K, LENGTH, (2,))
    prompts = [np.arange(3, 6 + i % 4) + i for i in range(32)]

    def score(trees, rows):
        return np.array([[np.mean(c % 2 == 0) for c in tree.completions] for tree in trees])

    collect = Collector(
        lambda params, *rest: sampler(params["policy"], *rest),
        {"even": (1.0, score)},
        prompts,
        [{}] * len(prompts),
        B,
    )
    steps = functools.partial(update, step_fn=step, packing=packing, weights=online.weights, size=B, num_minibatches=2)
    (done,) = iterate(state, collect, prepare, steps, iterations=1)
    texts = [c.tolist() for tree in done.trees for c in tree.completions]
    return texts, done.metrics, jax.tree.map(np.asarray, done.state.params), start


def test_an_iteration_with_sampling(tiny_config):
    texts, expected, want, start = iteration(tiny_config, (1, 1, 1))
    sampled, metrics, sharded, _ = iteration(tiny_config, SHAPE)
    assert sampled == texts
    close(sharded, want, start)
    for key, value in expected.items():
        assert metrics[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key
