"""Advantages against their definitions, written out in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign import advantages

few = settings(max_examples=15, deadline=None, derandomize=True, database=None)


def gae_in_numpy(rewards, values, mask, gamma, lam):
    """Row by row over the valid tokens only (Schulman et al. 2015, arXiv:1506.02438, eq. 16)."""
    out = np.zeros_like(rewards)
    for row, (r, v, m) in enumerate(zip(rewards, values, mask, strict=True)):
        valid = np.flatnonzero(m)
        for i, t in enumerate(valid):
            for power, later in enumerate(valid[i:]):
                after = v[valid[i + power + 1]] if i + power + 1 < len(valid) else 0
                out[row, t] += (gamma * lam) ** power * (r[later] + gamma * after - v[later])
    return out


@few
@given(seed=st.integers(0, 2**32 - 1), gamma=st.floats(0, 1), lam=st.floats(0, 1))
def test_gae_skips_over_holes(seed, gamma, lam):
    rng = np.random.default_rng(seed)
    rewards, values, mask = rng.normal(size=(3, 7)), rng.normal(size=(3, 7)), rng.random((3, 7)) < 0.6
    expected = gae_in_numpy(rewards, values, mask, gamma, lam)
    got, returns = advantages.gae(
        *[jnp.asarray(np.where(mask, x, np.nan), jnp.float32) for x in (rewards, values)], mask, gamma=gamma, lam=lam
    )
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose(returns, np.where(mask, expected + values, 0), atol=1e-5)


def test_gae_limits():
    """γ = λ = 1: return minus value. λ = 0: the one-step error."""
    rewards, values = jax.random.normal(jax.random.key(0), (2, 3, 5))
    mask = jnp.ones((3, 5), bool)
    got, returns = advantages.gae(rewards, values, mask, gamma=1.0, lam=1.0)
    to_go = jnp.cumsum(rewards[:, ::-1], axis=-1)[:, ::-1]
    np.testing.assert_allclose(returns, to_go, rtol=1e-5)
    np.testing.assert_allclose(got, to_go - values, rtol=1e-4, atol=1e-6)
    got, _ = advantages.gae(rewards, values, mask, gamma=0.9, lam=0.0)
    np.testing.assert_allclose(got, rewards + 0.9 * jnp.pad(values[:, 1:], ((0, 0), (0, 1))) - values, rtol=1e-4)


def test_gae_keeps_the_type_of_its_values():
    """Whatever the type of γ and λ, as a schedule makes them; and rows may have no columns."""
    mask, options = jnp.ones((1, 3), bool), {"gamma": jnp.float32(0.9), "lam": jnp.float32(0.8)}
    got = advantages.gae(jnp.ones((1, 3), jnp.bfloat16), jnp.ones((1, 3), jnp.bfloat16), mask, **options)
    assert {x.dtype for x in got} == {jnp.dtype(jnp.bfloat16)}
    empty = jnp.zeros((2, 0))
    assert advantages.gae(empty, empty, empty > 0, **options)[0].shape == (2, 0)
    assert advantages.kl_shaped_rewards(jnp.ones(2), empty, empty, empty > 0, beta=0.1).shape == (2, 0)


@few
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 6))
def test_group_advantages(seed, size):
    rewards = np.random.default_rng(seed).normal(size=(3, size))
    loo = advantages.leave_one_out(jnp.asarray(rewards, jnp.float32))
    if size == 1:
        assert not np.any(loo)
        assert not np.any(advantages.group_relative(jnp.asarray(rewards, jnp.float32)))
        return
    others = [[row[k] - np.delete(row, k).mean() for k in range(size)] for row in rewards]
    np.testing.assert_allclose(loo, others, atol=1e-5)
    np.testing.assert_allclose(np.sum(loo, axis=-1), 0, atol=1e-5)
    centred = rewards - rewards.mean(-1, keepdims=True)
    got = advantages.group_relative(jnp.asarray(rewards, jnp.float32))
    np.testing.assert_allclose(got, centred / (rewards.std(-1, ddof=1, keepdims=True) + 1e-4), atol=1e-4)
    got = advantages.group_relative(jnp.asarray(rewards, jnp.float32), scale=False)
    np.testing.assert_allclose(got, centred, atol=1e-6)
    np.testing.assert_array_equal(advantages.group_relative(jnp.full((2, size), 0.25)), 0)


def test_score_lands_on_the_last_valid_token_whole():
    """Fractions survive, an end before the padding is found, a row without tokens drops its score."""
    mask = jnp.array([[True, True, False], [True, False, True], [False, False, False]])
    zeros = jnp.zeros((3, 3))
    got = advantages.kl_shaped_rewards(jnp.array([0.25, 0.5, 9.0]), zeros, zeros, mask, beta=0.1)
    np.testing.assert_array_equal(got, [[0, 0.25, 0], [0, 0, 0.5], [0, 0, 0]])


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whiten(shift_mean):
    x, mask = jnp.array([1.0, 4.0, jnp.nan, 7.0]), jnp.array([True, True, False, True])
    expected = np.array([-3, 0, 0, 3]) / np.sqrt(6) + (0 if shift_mean else 4 * np.asarray(mask))
    np.testing.assert_allclose(advantages.whiten(x, mask, shift_mean=shift_mean), expected, rtol=1e-6)
    for valid in (jnp.zeros(4, bool), jnp.arange(4) == 1):
        for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
            got = advantages.whiten(x.astype(dtype), valid, shift_mean=shift_mean)
            assert got.dtype == dtype
            np.testing.assert_allclose(got, jnp.where(valid & (not shift_mean), x, 0))
