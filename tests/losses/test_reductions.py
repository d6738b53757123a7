"""Reductions, metrics and controllers: they add over microbatches, ignore what is masked, and mean what they say."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign import losses
from jaxalign.losses import metrics

few = settings(max_examples=8, deadline=None, derandomize=True, database=None)
fixed_length = functools.partial(losses.fixed_length_mean, length=7)
fixed_length_weights = functools.partial(losses.fixed_length_mean_weights, length=7)
REDUCTIONS = {
    "token_mean": (losses.token_mean, losses.token_mean_weights),
    "sequence_mean": (losses.sequence_mean, losses.sequence_mean_weights),
    "sequence_sum": (losses.sequence_sum, losses.sequence_sum_weights),
    "fixed_length_mean": (fixed_length, fixed_length_weights),
}


def batch(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((6, 5)) < 0.5
    mask[:, 2] = True
    return rng.normal(size=(6, 5)).astype(np.float32), mask


@pytest.mark.parametrize("name", REDUCTIONS)
@few
@given(seed=st.integers(0, 2**32 - 1))
def test_microbatches_add_up_to_the_whole(name, seed):
    reduce, weigh = REDUCTIONS[name]
    values, mask = batch(seed)
    weights = weigh(mask)
    parts = [losses.weighted_sum(values[i : i + 2], weights[i : i + 2]) for i in (0, 2, 4)]
    np.testing.assert_allclose(sum(parts), reduce(values, mask), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_definitions(name):
    values, mask = batch(0)
    rows = [row[m] for row, m in zip(values, mask, strict=True)]
    expected = {
        "token_mean": np.concatenate(rows).mean(),
        "sequence_mean": np.mean([row.mean() for row in rows]),
        "sequence_sum": np.mean([row.sum() for row in rows]),
        "fixed_length_mean": sum(row.sum() for row in rows) / (len(rows) * 7),
    }
    np.testing.assert_allclose(REDUCTIONS[name][0](values, mask), expected[name], rtol=1e-5)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_padding_of_either_axis_changes_nothing(name):
    reduce, _ = REDUCTIONS[name]
    values, mask = batch(1)
    padded = np.pad(np.where(mask, values, np.nan), ((0, 2), (0, 3)), constant_values=np.nan)
    longer = np.pad(mask, ((0, 2), (0, 3)))
    np.testing.assert_allclose(reduce(padded, longer), reduce(values, mask), rtol=1e-5, atol=1e-7)
    slope = jax.grad(reduce)(padded, longer)
    np.testing.assert_allclose(slope[:6, :5], jax.grad(reduce)(values, mask), rtol=1e-6)
    assert reduce(padded, jnp.zeros_like(longer)) == 0
    np.testing.assert_array_equal(jax.grad(reduce)(padded, jnp.zeros_like(longer)), 0)


def test_metrics_add_over_microbatches_and_ignore_what_is_masked():
    rng = np.random.default_rng(0)
    arrays = -np.abs(rng.normal(size=(4, 8))).astype(np.float32)
    mask = np.arange(8) % 3 > 0
    poisoned = np.where(mask, arrays, np.nan).astype(np.float32)
    kinds = {
        "preference": lambda x, m: metrics.preference_metrics(*x, m, beta=0.5),
        "reward": lambda x, m: metrics.reward_metrics(*x[:2], m),
        "policy": lambda x, m: metrics.policy_metrics(x[0], x[1], x[2] + 1, m),
        "values": lambda x, m: {"clipped": metrics.value_clip_fraction(*x[:3], m)},
    }
    for measure in kinds.values():
        whole = metrics.mean(measure(poisoned, mask))
        halves = metrics.mean(metrics.add(*(measure(poisoned[:, s], mask[s]) for s in (slice(0, 5), slice(5, 8)))))
        picked = metrics.mean(measure(arrays[:, mask], None))
        for name in whole:
            np.testing.assert_allclose(halves[name], whole[name], rtol=1e-5)
            np.testing.assert_allclose(picked[name], whole[name], rtol=1e-5)


def test_metrics_carry_no_gradient():
    x = jnp.array([-1.0, -2.0])
    slope = jax.grad(lambda x: metrics.preference_metrics(x, 2 * x, x, x, beta=1.0)["rewards/margins"][0])(x)
    np.testing.assert_array_equal(slope, 0)


def test_accuracy_counts_a_tie_as_half():
    zeros = jnp.zeros(2)
    total, count = metrics.preference_metrics(jnp.array([1.0, 0.0]), zeros, zeros, zeros, beta=0.1)[
        "rewards/accuracies"
    ]
    assert (total, count) == (1.5, 2)


def test_clip_fractions_are_those_of_the_loss():
    """A token is clipped exactly where ``ppo_clip`` has no gradient."""
    rng = np.random.default_rng(0)
    logps, old, advantage = rng.normal(size=(3, 50)).astype(np.float32) / 3
    slope = jax.grad(lambda x: jnp.sum(losses.ppo_clip(x, old, advantage)))(logps)
    total, _ = metrics.policy_metrics(logps, old, advantage)["policy/clipfrac_avg"]
    assert total == np.sum(slope == 0) > 0
    values, old, returns = logps, old, advantage
    slope = jax.grad(lambda x: jnp.sum(losses.value_clip(x, old, returns)))(values)
    assert metrics.value_clip_fraction(values, old, returns)[0] == np.sum(slope == 0) > 0


def test_explained_variance():
    rng = np.random.default_rng(0)
    values, returns = rng.normal(size=(2, 40)) + 3
    mask = rng.random(40) < 0.7
    parts = [
        metrics.value_moments(*(jnp.asarray(x[s]) for x in (values, returns, mask))) for s in (slice(15), slice(15, 40))
    ]
    expected = 1 - np.var((returns - values)[mask]) / np.var(returns[mask])
    np.testing.assert_allclose(metrics.explained_variance(metrics.add(*parts)), expected, rtol=1e-3)
    assert jnp.isnan(metrics.explained_variance(metrics.value_moments(jnp.zeros(3), jnp.ones(3))))


def test_controllers():
    state = losses.KLState(jnp.array(0.2))
    assert losses.fixed_kl(state, 50.0) is state
    adapt = jax.jit(functools.partial(losses.adaptive_kl, target=6.0))
    assert adapt(state, 6.0).beta == state.beta
    np.testing.assert_allclose(adapt(state, 6000.0).beta, 0.2 * 1.02, rtol=1e-6)
    np.testing.assert_allclose(adapt(state, 0.0).beta, 0.2 * 0.98, rtol=1e-6)
    states, _ = jax.lax.scan(lambda s, kl: (adapt(s, kl), None), state, jnp.full(10, 9.0))
    assert states.beta > state.beta
    with jax.enable_x64(True):
        narrow = losses.KLState(jnp.float32(0.2))
        assert losses.adaptive_kl(narrow, jnp.float64(9.0), target=6.0).beta.dtype == jnp.float32


def test_kto_reference_point_is_the_mean_of_the_global_batch():
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices")
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    policy, reference = -jnp.abs(jax.random.normal(jax.random.key(0), (2, 32)))
    place = functools.partial(jax.device_put, device=NamedSharding(mesh, PartitionSpec("data")))
    got = jax.jit(losses.kto_kl)(place(policy - reference - 1), place(jnp.zeros(32)))
    np.testing.assert_allclose(got, max(0.0, float(jnp.mean(policy - reference - 1))), atol=1e-6)
    got = jax.jit(losses.kto_kl)(place(policy - reference + 1), place(jnp.zeros(32)))
    np.testing.assert_allclose(got, jnp.mean(policy - reference + 1), rtol=1e-6)
