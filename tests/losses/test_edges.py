"""What the formulas promise at special points: identities, overflow, ties, and hyper-parameters out of range."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import advantages, losses
from jaxalign.logprobs import kl_estimate
from tests.losses.registry import CASES, LABELLED, PAIR

zero, one = jnp.zeros(1), jnp.ones(1)


def gradient(function, x):
    return jax.grad(lambda x: jnp.sum(function(x)))(x)


@pytest.mark.parametrize("case", [c for c in CASES if c.args[:4] == PAIR], ids=lambda case: case.name)
@pytest.mark.parametrize("h", [(1e3, -1e3), (-1e3, 1e3), (1e3, 1e3), (-1e3, -1e3)], ids=str)
def test_pairs_at_extreme_log_ratios(case, h):
    def total(pc, pr):
        return jnp.sum(case.call(pc, pr, jnp.full(4, -1e3), jnp.full(4, -1e3)))

    value, gradients = jax.value_and_grad(total, (0, 1))(*[jnp.full(4, x - 1e3) for x in h])
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("case", [c for c in CASES if c.args[:3] == LABELLED], ids=lambda case: case.name)
@pytest.mark.parametrize("h", [1e3, -1e3])
def test_labelled_at_extreme_log_ratios(case, h):
    rest = [jnp.array([True, False]), jnp.zeros(())][: len(case.args) - 2]
    value, slope = jax.value_and_grad(lambda p: jnp.sum(case.call(p, jnp.zeros(2), *rest)))(jnp.full(2, h))
    assert jnp.isfinite(value)
    assert jnp.isfinite(slope).all()


@pytest.mark.parametrize(
    "case", [c for c in CASES if {"old_logps", "advantages"} <= {a.name for a in c.args}], ids=lambda case: case.name
)
@pytest.mark.parametrize(("dtype", "log_ratio"), [(np.float32, 80.0), (np.float64, 500.0)], ids=["fp32", "fp64"])
@pytest.mark.parametrize("sign", [1, -1])
def test_ratios_at_extreme_log_ratios(case, dtype, log_ratio, sign):
    with jax.enable_x64(True):
        args = dict(zip([a.name for a in case.args], case.make(0, dtype=dtype), strict=True))
        args["logps"] = jnp.asarray(args["old_logps"] + sign * log_ratio, dtype)

        def total(logps):
            return jnp.sum(case.call(*(args | {"logps": logps}).values()))

        value, slope = jax.value_and_grad(total)(args["logps"])
        assert jnp.isfinite(value)
        assert jnp.isfinite(slope).all()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_policy_at_reference_is_log_2(label_smoothing):
    for divergence in (losses.reverse_kl, losses.forward_kl, losses.jensen_shannon):
        value = losses.dpo(zero, zero, zero, zero, beta=0.3, label_smoothing=label_smoothing, divergence=divergence)
        np.testing.assert_allclose(value, math.log(2), rtol=1e-6)
    value = losses.aot(zero, zero, zero, zero, beta=0.3, label_smoothing=label_smoothing)
    np.testing.assert_allclose(value, math.log(2), rtol=1e-6)


@pytest.mark.parametrize("alpha", [-1.0, 0.3, 0.5, 0.7])
def test_equal_scores_beyond_the_cut_are_equal_under_jit(alpha):
    divergence = functools.partial(losses.alpha_divergence, alpha=alpha)
    loss = jax.jit(functools.partial(losses.dpo, beta=0.1, divergence=divergence))
    np.testing.assert_allclose(loss(-1e3 * one, -9e2 * one, zero, zero), math.log(2), rtol=1e-6)


def test_relatives_agree_where_they_must():
    pc, pr, rc, rr = -jnp.abs(jax.random.normal(jax.random.key(0), (4, 7))) * 5
    plain = losses.dpo(pc, pr, rc, rr, beta=0.3)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
    close(losses.robust_dpo(pc, pr, rc, rr, beta=0.3, label_smoothing=0.0), plain)
    close(losses.cpo(pc, pr, beta=0.3), losses.dpo(pc, pr, zero + 0 * pc, 0 * pr, beta=0.3))
    close(losses.bradley_terry(0.3 * (pc - rc), 0.3 * (pr - rr)), plain)
    close(losses.plackett_luce(jnp.stack([pc, pr], -1)), losses.bradley_terry(pc, pr))
    close(losses.aot(pc[:1], pr[:1], rc[:1], rr[:1], beta=0.3), plain[:1])
    close(losses.simpo(pc, pr, beta=0.3, gamma=0.0), losses.cpo(pc, pr, beta=0.3))
    nearly = losses.alpha_po(pc, pr, beta=0.3, gamma=0.1, alpha=1e-3)
    np.testing.assert_allclose(nearly, losses.simpo(pc, pr, beta=0.3, gamma=0.1), rtol=0.05)
    for alpha, limit in ((1.0, losses.reverse_kl), (0.0, losses.forward_kl)):
        close(losses.alpha_divergence(pc, alpha=alpha), limit(pc))
    label = pc > -3
    apo = losses.apo_zero(pc, pr, rc, rr, beta=0.3)
    close(losses.kto(pc, rc, label, jnp.zeros(()), beta=0.3), losses.apo_zero_unpaired(pc, rc, label, beta=0.3))
    ups = losses.apo_zero_unpaired(pc, rc, label | True, beta=0.3)
    close(ups + losses.apo_zero_unpaired(pr, rr, label & False, beta=0.3), apo)
    delta = jnp.array(0.2)
    ups = losses.bco(pc, rc, label | True, delta, beta=0.3)
    downs = losses.bco(pr, rr, label & False, delta, beta=0.3)
    close(ups + downs, losses.bco_pair(pc, pr, rc, rr, beta=0.3, delta=0.2))


def test_robust_dpo_is_unbiased_under_flipped_labels():
    """Its mean over labels flipped with probability e is DPO on the true ones."""
    pc, pr, rc, rr = -jnp.abs(jax.random.normal(jax.random.key(0), (4, 7))) * 5
    loss = functools.partial(losses.robust_dpo, beta=0.3, label_smoothing=0.2)
    mean = 0.8 * loss(pc, pr, rc, rr) + 0.2 * loss(pr, pc, rr, rc)
    np.testing.assert_allclose(mean, losses.dpo(pc, pr, rc, rr, beta=0.3), rtol=1e-5, atol=1e-6)


def test_dft_weighs_each_token_by_its_probability():
    logps = jnp.array([-0.1, -2.0])
    np.testing.assert_allclose(gradient(losses.dft, logps), -jnp.exp(logps), rtol=1e-6)


def test_mpo_is_a_plain_sum():
    """MPO (Wang et al. 2024, arXiv:2411.10442, eq. 2) = 0.8 preference + 0.2 quality + 1.0 generation: no function."""
    pair = -jnp.abs(jax.random.normal(jax.random.key(0), (4, 7)))
    parts = losses.dpo(*pair, beta=0.1), losses.bco_pair(*pair, beta=0.1), losses.nll(pair[0])
    mixed = 0.8 * parts[0] + 0.2 * parts[1] + parts[2]
    slope = gradient(
        lambda pc: 0.8 * losses.dpo(pc, *pair[1:], beta=0.1) + 0.2 * losses.bco_pair(pc, *pair[1:], beta=0.1) - pc,
        pair[0],
    )
    assert mixed.shape == slope.shape == (7,)


def test_discopop_where_the_exponential_overflows():
    value, slope = jax.value_and_grad(lambda pc: losses.discopop(pc, 0.0, 0.0, 0.0, beta=1.0))(-500.0)
    np.testing.assert_allclose([value, slope], [500.0, -1.0], rtol=1e-6)


@pytest.mark.parametrize("clip_high", [0.2, 0.28])
def test_ratio_beyond_float_range_is_clipped(clip_high):
    """At a log-ratio of 500 with A > 0 the value is -(1+hi)A and the gradient 0."""
    mask = jnp.ones((1, 2), bool)
    for loss in (
        lambda x: losses.ppo_clip(x, zero, 2 * one, clip_high=clip_high),
        lambda x: losses.gspo(
            x + jnp.zeros((1, 2)), jnp.zeros((1, 2)), 2 * one, mask, clip_low=0.2, clip_high=clip_high
        ),
    ):
        np.testing.assert_allclose(loss(500 * one), -2 * (1 + clip_high), rtol=1e-6)
        np.testing.assert_array_equal(gradient(loss, 500 * one), 0)


def test_on_policy_gradients_are_those_of_reinforce():
    """At ρ = 1 every surrogate has the gradient -A, also with clips of 0."""
    logps, advantage = -jnp.ones((2, 3)), jnp.array([[1.5] * 3, [-0.5] * 3])
    for loss in (
        losses.reinforce,
        lambda x, a: losses.ppo_clip(x, logps, a),
        lambda x, a: losses.ppo_clip(x, logps, a, clip_low=0.0, clip_high=0.0),
        lambda x, a: losses.dual_clip(x, logps, a, max_ratio=3.0),
        lambda x, a: losses.cispo(x, logps, a, max_ratio=5.0),
        lambda x, a: losses.sapo(x, logps, a),
        lambda x, a: losses.vespo(x, logps, a[:, 0], jnp.ones((2, 3), bool)),
    ):
        np.testing.assert_allclose(gradient(lambda x, loss=loss: loss(x, advantage), logps), -advantage, rtol=1e-6)
    for loss in (
        lambda x: losses.gspo(x, logps, advantage[:, 0], jnp.ones((2, 3), bool), clip_low=3e-4, clip_high=4e-4),
        lambda x: losses.gmpo(x, logps, advantage[:, 0], jnp.ones((2, 3), bool)),
    ):
        np.testing.assert_allclose(gradient(loss, logps), -advantage / 3, rtol=1e-6)


def test_soft_gate_where_float16_overflows():
    """SAPO saturates: no 0 · ∞ beyond the largest exponent of a narrow type."""
    value, slope = jax.value_and_grad(lambda x: losses.sapo(x, 0 * x, 1 + 0 * x))(jnp.float16(80))
    assert (value, slope) == (-4, 0)


def test_orpo_near_certainty():
    """Log-odds near log-prob 0 keep their precision, and stay finite at 0 itself."""
    a, low = jnp.array([-1e-10, -1e-30, 0.0]), jnp.full(3, -1.0)
    log_odds = np.array([23.02585, 69.07755, 87.33655])  # -log(-a), at 0 that of the smallest normal number
    log_odds_low = -1 - math.log(1 - math.exp(-1))
    np.testing.assert_allclose(losses.orpo(low, a), np.log1p(np.exp(log_odds - log_odds_low)), rtol=1e-6)
    for function in (lambda x: losses.orpo(x, low), lambda x: losses.orpo(low, x)):
        assert jnp.isfinite(gradient(function, a)).all()


def test_kto_reference_point():
    assert losses.kto_kl(jnp.array([-5.0, 1.0]), zero.repeat(2)) == 0
    assert losses.kto_kl(jnp.array([-1.0, 3.0]), zero.repeat(2)) == 1, "the mean first, then the clamp"
    assert jax.grad(lambda p: losses.kto_kl(p, zero))(one) == 0, "a constant where it is positive, too"
    masked = losses.kto_kl(jnp.array([-1.0, jnp.nan]), jnp.array([-4.0, 0.0]), mask=jnp.array([True, False]))
    assert masked == 3
    slope = jax.grad(lambda p: losses.kto(p, zero, one > 0, losses.kto_kl(p, zero), beta=1.0)[0])(one)
    expected = jax.grad(lambda p: losses.kto(p, zero, one > 0, jnp.array(1.0), beta=1.0)[0])(one)
    np.testing.assert_allclose(slope, expected)


@pytest.mark.parametrize("label_smoothing", [0.0, 1.0, -0.1])
def test_exo_needs_a_target_inside(label_smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing must be in \(0, 1\)"):
        losses.exo_pair(zero, zero, zero, zero, beta=0.1, label_smoothing=label_smoothing)


@pytest.mark.parametrize("label_smoothing", [0.5, -0.1])
def test_robust_needs_less_than_half(label_smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 0.5\)"):
        losses.robust_dpo(zero, zero, zero, zero, beta=0.1, label_smoothing=label_smoothing)


@pytest.mark.parametrize("loss", [losses.exo_pair, losses.robust_dpo])
def test_label_smoothing_may_be_an_array(loss):
    """Closed over by a jitted function, one per pair, or of a wrong type."""
    e = jnp.array(0.2)
    np.testing.assert_allclose(
        jax.jit(lambda pc: loss(pc, zero, zero, zero, beta=0.1, label_smoothing=e))(one),
        loss(one, zero, zero, zero, beta=0.1, label_smoothing=0.2),
    )
    pair = [jnp.zeros(2)] * 4
    assert loss(*pair, beta=0.1, label_smoothing=jnp.array([0.1, 0.2])).shape == (2,)
    with pytest.raises(ValueError, match="label_smoothing must be in"):
        loss(*pair, beta=0.1, label_smoothing=jnp.array([0.1, 1.0]))
    with pytest.raises(TypeError, match="label_smoothing must be an array, got NoneType"):
        loss(*pair, beta=0.1, label_smoothing=None)


def test_broadcasting_is_refused():
    with pytest.raises(ValueError, match=r"policy_rejected_logps must have the shape of policy_chosen_logps, \[4\]"):
        losses.dpo(jnp.zeros(4), jnp.zeros((4, 1)), jnp.zeros(4), jnp.zeros(4), beta=0.1)
    with pytest.raises(ValueError, match="kl must be a scalar or have the shape of policy_logps"):
        losses.kto(zero, zero, one > 0, jnp.zeros(3), beta=0.1)
    with pytest.raises(TypeError, match="mask must be bool, True where it counts"):
        losses.gspo(zero[None], zero[None], zero, jnp.ones((1, 1), int), clip_low=0.2, clip_high=0.2)
    with pytest.raises(ValueError, match="estimator must be one of k1, k2, k3, got 'k4'"):
        kl_estimate(zero, zero, estimator="k4")
    with pytest.raises(ValueError, match="delta must be a scalar or have the shape of policy_chosen_logps"):
        losses.bco_pair(zero, zero, zero, zero, beta=0.1, delta=jnp.zeros((1, 1)))
    for wrong in ("a", None, [1.0, None], [[1.0], [1.0, 2.0]]):
        with pytest.raises(TypeError, match="policy_chosen_logps must be an array"):
            losses.cpo(wrong, [1.0], beta=0.1)


def test_integer_rewards_keep_their_meaning():
    np.testing.assert_allclose(advantages.leave_one_out(np.array([[0, 1, 1]])), [[-1, 0.5, 0.5]])
    shaped = advantages.kl_shaped_rewards(np.array([1]), one[None] * -1, one[None] * -2, one[None] > 0, beta=0.3)
    np.testing.assert_allclose(shaped, [[0.7]], rtol=1e-6)


def test_preference_losses_accept_plain_numbers_and_numpy():
    losses.vespo([-1.0], [-1.0], 1.0, [True])
    assert losses.dpo(-1.0, -4.0, -2.0, -3.0, beta=0.1).shape == ()
    assert losses.dpo(*np.zeros((4, 2)), beta=0.1).shape == (2,)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimators(estimator):
    """k1 and k3 are unbiased for KL(π ‖ π_ref) over the vocabulary, all vanish at π = π_ref."""
    logits = jax.random.normal(jax.random.key(0), (2, 50))
    p, q = jax.nn.log_softmax(logits)
    exact = jnp.sum(jnp.exp(p) * (p - q))
    estimate = jnp.sum(jnp.exp(p) * kl_estimate(p, q, estimator=estimator))
    np.testing.assert_allclose(estimate, exact, rtol=1e-5 if estimator != "k2" else 0.5)
    np.testing.assert_array_equal(kl_estimate(p, p, estimator=estimator), 0)
