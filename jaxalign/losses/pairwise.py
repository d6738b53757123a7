"""Losses of a chosen and a rejected completion against a reference model: DPO and its relatives.

Everywhere h_c = policy_chosen_logps - reference_chosen_logps, h_r is the same of the rejected one, Δ = h_c - h_r, and σ
is the logistic function. Log-probabilities are in nats, summed over a completion's tokens, and all four have one shape
``[...]``. The result has that shape and is differentiable with respect to the two policy arguments only.

Losses of Δ, except ``ipo``, take a ``divergence``: a function of ``jaxalign.losses.divergences``. It is applied to h_c
and h_r first, so that Δ = f'(exp h_c) - f'(exp h_r). The default, reverse KL, is the identity.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, relu, sigmoid
from jaxtyping import Array, Float

from jaxalign import _checks as check
from jaxalign.losses.divergences import reverse_kl

Logps = Float[Array, "*B"]
Divergence = Callable[[Array], Array]


def log_ratios(
    policy_chosen_logps: Logps,
    policy_rejected_logps: Logps,
    reference_chosen_logps: Logps,
    reference_rejected_logps: Logps,
) -> tuple[Logps, Logps]:
    """Returns the log-ratios h_c and h_r of policy to reference, with the reference held constant.

        h_c = log π(y_c) - log π_ref(y_c)        h_r = log π(y_r) - log π_ref(y_r)

    Args:
        policy_chosen_logps: log-probabilities of the chosen completions under the policy, nats, ``[...]``.
        policy_rejected_logps: the same of the rejected completions.
        reference_chosen_logps: log-probabilities of the chosen completions under the reference, nats, ``[...]``.
        reference_rejected_logps: the same of the rejected completions.

    Returns:
        ``(h_c, h_r)`` in nats, each ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> log_ratios(jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0]))
    (Array([1.], dtype=float32), Array([-1.], dtype=float32))
    """
    pc, pr, rc, rr = check.to_floats(
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        reference_chosen_logps=reference_chosen_logps,
        reference_rejected_logps=reference_rejected_logps,
    )
    return pc - jax.lax.stop_gradient(rc), pr - jax.lax.stop_gradient(rr)


def logistic_link(logits: Logps, *, label_smoothing: float | Logps = 0.0) -> Logps:
    """Computes the cross-entropy of a preference whose label is wrong with probability e.

        -(1-e) log σ(x) - e log σ(-x)

    Args:
        logits: x, the log-odds that the chosen completion is the better one, ``[...]``.
        label_smoothing: e, one number or one per example.

    Returns:
        loss, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.

    >>> logistic_link(jnp.array([0.0, 2.0]), label_smoothing=0.1)
    Array([0.6931... , 0.3269...], dtype=float32)

    Source: Mitchell 2023, https://ericmitchell.ai/cdpo.pdf, eq. 3.
    """
    logits = check.to_float("logits", logits)
    return -(1 - label_smoothing) * log_sigmoid(logits) - label_smoothing * log_sigmoid(-logits)


def dpo(
    policy_chosen_logps: Logps,
    policy_rejected_logps: Logps,
    reference_chosen_logps: Logps,
    reference_rejected_logps: Logps,
    *,
    beta: float,
    label_smoothing: float | Logps = 0.0,
    divergence: Divergence = reverse_kl,
) -> Logps:
    """Computes the loss of direct preference optimisation (DPO).

        -(1-e) log σ(βΔ) - e log σ(-βΔ)

    The value is log 2 where the policy equals the reference. With e > 0 it is cDPO, with another ``divergence`` f-DPO.

    Args:
        policy_chosen_logps: log-probabilities of the chosen completions under the policy, nats, ``[...]``.
        policy_rejected_logps: the same of the rejected completions.
        reference_chosen_logps: log-probabilities of the chosen completions under the reference, nats, ``[...]``.
        reference_rejected_logps: the same of the rejected completions.
        beta: β, strength of the pull to the reference.
        label_smoothing: e, the probability that a label is wrong: one number, or one per pair (a judge's soft labels).
        divergence: f' of the divergence between policy and reference, a function of the log-ratio.

    Returns:
        loss per pair, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> dpo(jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0]), beta=0.1)
    Array([0.5981...], dtype=float32)

    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; cDPO: Mitchell 2023, https://ericmitchell.ai/cdpo.pdf, eq. 3;
    f-DPO: Wang et al. 2023, arXiv:2309.16240.
    """
    h_c, h_r = log_ratios(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    return logistic_link(beta * (divergence(h_c) - divergence(h_r)), label_smoothing=label_smoothing)


def robust_dpo(
    policy_chosen_logps: Logps,
    policy_rejected_logps: Logps,
    reference_chosen_logps: Logps,
    reference_rejected_logps: Logps,
    *,
    beta: float,
    label_smoothing: float,
    divergence: Divergence = reverse_kl,
) -> Logps:
    """Computes robust DPO, whose expectation under labels flipped with probability e is DPO on the true labels.

        [-(1-e) log σ(βΔ) + e log σ(-βΔ)] / (1-2e)

    Args:
        policy_chosen_logps: log-probabilities of the chosen completions under the policy, nats, ``[...]``.
        policy_rejected_logps: the same of the rejected completions.
        reference_chosen_logps: log-probabilities of the chosen completions under the reference, nats, ``[...]``.
        reference_rejected_logps: the same of the rejected completions.
        beta: β, strength of the pull to the reference.
        label_smoothing: e, the probability that a label is flipped, in [0, ½).
        divergence: as in ``dpo``.

    Returns:
        loss per pair, ``[...]``; it may be negative.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape, or if e is outside [0, ½); the message names it.

    >>> pc, pr, rc, rr = jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0])
    >>> robust_dpo(pc, pr, rc, rr, beta=0.1, label_smoothing=0.1)
    Array([0.5731...], dtype=float32)

    Source: Ray Chowdhury et al. 2024, arXiv:2403.00409.
    """
    check.in_interval("label_smoothing", label_smoothing, 0, 0.5)
    h_c, h_r = log_ratios(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    e, x = label_smoothing, beta * (divergence(h_c) - divergence(h_r))
    return (-(1 - e) * log_sigmoid(x) + e * log_sigmoid(-x)) / (1 - 2 * e)


def ipo(
    policy_chosen_logps: Logps,
    policy_rejected_logps: Logps,
    reference_chosen_logps: Logps,
    reference_rejected_logps: Logps,
    *,
    beta: float,
) -> Logps:
    """Computes the loss of identity preference optimisation (IPO).

        (Δ - 1/(2β))²

    Pass log-probabilities *averaged* over each completion's tokens, as the authors did in their experiments. On sums
    the loss grows with length.

    Args:
        policy_chosen_logps: log-probabilities of the chosen completions under the policy, nats per token, ``[...]``.
        policy_rejected_logps: the same of the rejected completions.
        reference_chosen_logps: log-probabilities of the chosen completions under the reference, nats per token,
            ``[...]``.
        reference_rejected_logps: the same of the rejected completions.
        beta: β, strength of the pull to the reference; the loss drives the margin Δ to 1/(2β).

    Returns:
        loss per pair, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> ipo(jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0]), beta=0.1)
    Array([9.], dtype=float32)

    Source: Azar et al. 2023, arXiv:2310.12036, eq. 17 (its τ is β here).
    """
    h_c, h_r = log_ratios(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    return (h_c - h_r - 1 / (2 * beta)) ** 2


def hinge(
    policy_chosen_logps: Logps,
    policy_rejected_logps: Logps,
    reference_chosen_logps: Logps,
    reference_rejected_logps: Logps,
    *,
    beta: float,
    divergence: Divergence = reverse_kl,
) -> Logps:
    """Computes SLiC's hinge loss, normalised by the reference.

        max(0, 1 - βΔ)

    Args:
        policy_chosen_logps: log-probabilities of the chosen completions under the policy, nats, ``[...]``.
        policy_rejected_logps: the same of the rejected completions.
        reference_chosen_logps: log-probabilities of the chosen completions under the reference, nats, ``[...]``.
        reference_rejected_logps: the same of the rejected completions.
        beta: β, inverse of the margin Δ beyond which a pair has no gradient.
        divergence: as in ``dpo``.

    Returns:
        loss per pair, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> hinge(jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0]), beta=0.1)
    Array([0.8], dtype=float32)

    Source: Liu et al. 2023 (RSO), arXiv:2309.06657, after SLiC-HF, Zhao et al. 2023, arXiv:2305.10425, eq. 1.
    """
    h_c, h_r = log_ratios(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    return relu(1 - beta * (divergence(h_c) - divergence(h_r)))


def exo_pair(
    policy_chosen_logps: Logps,
    policy_rejected_logps: Logps,
    reference_chosen_logps: Logps,
    reference_rejected_logps: Logps,
    *,
    beta: float,
    label_smoothing: float,
    divergence: Divergence = reverse_kl,
) -> Logps:
    """Computes the loss of efficient exact optimisation (EXO), the reverse KL over a pair.

        σ(βΔ) [log σ(βΔ) - log(1-e)] + σ(-βΔ) [log σ(-βΔ) - log e]

    Args:
        policy_chosen_logps: log-probabilities of the chosen completions under the policy, nats, ``[...]``.
        policy_rejected_logps: the same of the rejected completions.
        reference_chosen_logps: log-probabilities of the chosen completions under the reference, nats, ``[...]``.
        reference_rejected_logps: the same of the rejected completions.
        beta: β, strength of the pull to the reference.
        label_smoothing: e, the target probability of the rejected completion, in (0, 1).
        divergence: as in ``dpo``.

    Returns:
        loss per pair, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape, or if e is outside (0, 1); the message names it.

    >>> pc, pr, rc, rr = jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0])
    >>> exo_pair(pc, pr, rc, rr, beta=0.1, label_smoothing=0.1)
    Array([0.4063...], dtype=float32)

    Source: Ji et al. 2024, arXiv:2402.00856, eq. 16.
    """
    check.in_interval("label_smoothing", label_smoothing, 0, 1, open_low=True)
    h_c, h_r = log_ratios(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    e, x = label_smoothing, beta * (divergence(h_c) - divergence(h_r))
    chosen = sigmoid(x) * (log_sigmoid(x) - jnp.log1p(-e))
    return chosen + sigmoid(-x) * (log_sigmoid(-x) - jnp.log(e))


def discopop(
    policy_chosen_logps: Logps,
    policy_rejected_logps: Logps,
    reference_chosen_logps: Logps,
    reference_rejected_logps: Logps,
    *,
    beta: float,
    tau: float = 0.05,
    divergence: Divergence = reverse_kl,
) -> Logps:
    """Computes DiscoPOP, the log-ratio modulated loss.

        (1-m) (-log σ(βΔ)) + m exp(-βΔ),        m = σ(βΔ/τ)

    Args:
        policy_chosen_logps: log-probabilities of the chosen completions under the policy, nats, ``[...]``.
        policy_rejected_logps: the same of the rejected completions.
        reference_chosen_logps: log-probabilities of the chosen completions under the reference, nats, ``[...]``.
        reference_rejected_logps: the same of the rejected completions.
        beta: β, strength of the pull to the reference.
        tau: τ, temperature of the blend.
        divergence: as in ``dpo``.

    Returns:
        loss per pair, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> discopop(jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0]), beta=0.1)
    Array([0.8147...], dtype=float32)

    Source: Lu et al. 2024, arXiv:2406.08414, eq. 5.
    """
    h_c, h_r = log_ratios(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    x = beta * (divergence(h_c) - divergence(h_r))
    # m · exp(-x) in one exponential: apart, they are 0 · ∞ for x << 0.
    return sigmoid(-x / tau) * -log_sigmoid(x) + jnp.exp(log_sigmoid(x / tau) - x)


def aot(
    policy_chosen_logps: Logps,
    policy_rejected_logps: Logps,
    reference_chosen_logps: Logps,
    reference_rejected_logps: Logps,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Logps:
    """Computes alignment via optimal transport (AOT) of paired data.

        logistic_link(β [sort(pc - pr) - sort(rc - rr)])

    pc, pr, rc and rr are the four arguments in order. The loss makes the policy's margins dominate the reference's
    stochastically, quantile by quantile. The sort is over the last axis, the batch. Values therefore depend on the
    whole batch, and the i-th value belongs to the i-th quantile, not to the i-th pair.

    Args:
        policy_chosen_logps: log-probabilities of the chosen completions under the policy, nats, ``[..., B]``.
        policy_rejected_logps: the same of the rejected completions.
        reference_chosen_logps: log-probabilities of the chosen completions under the reference, nats, ``[..., B]``.
        reference_rejected_logps: the same of the rejected completions.
        beta: β, strength of the pull to the reference.
        label_smoothing: as in ``dpo``.

    Returns:
        loss per quantile, ``[..., B]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> pc, pr, zero = jnp.array([-1.0, -2.0]), jnp.array([-4.0, -3.0]), jnp.zeros(2)
    >>> aot(pc, pr, zero, zero, beta=0.1)
    Array([0.6443..., 0.5543...], dtype=float32)

    Source: Melnyk et al. 2024, arXiv:2406.05882.
    """
    pc, pr, rc, rr = check.to_floats(
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        reference_chosen_logps=reference_chosen_logps,
        reference_rejected_logps=reference_rejected_logps,
    )
    check.has_axis("policy_chosen_logps", pc, "[..., B]")
    quantiles = jnp.sort(pc - pr, axis=-1) - jax.lax.stop_gradient(jnp.sort(rc - rr, axis=-1))
    return logistic_link(beta * quantiles, label_smoothing=label_smoothing)


def aot_unpaired(
    policy_chosen_logps: Logps,
    policy_rejected_logps: Logps,
    reference_chosen_logps: Logps,
    reference_rejected_logps: Logps,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Logps:
    """Computes alignment via optimal transport (AOT) of unpaired data.

        logistic_link(β [sort(h_c) - sort(h_r)])

    The sort is over the last axis, as in ``aot``. Chosen and rejected completions need not share prompts.

    Args:
        policy_chosen_logps: log-probabilities of the chosen completions under the policy, nats, ``[..., B]``.
        policy_rejected_logps: the same of the rejected completions.
        reference_chosen_logps: log-probabilities of the chosen completions under the reference, nats, ``[..., B]``.
        reference_rejected_logps: the same of the rejected completions.
        beta: β, strength of the pull to the reference.
        label_smoothing: as in ``dpo``.

    Returns:
        loss per quantile, ``[..., B]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> pc, pr, zero = jnp.array([-1.0, -2.0]), jnp.array([-4.0, -3.0]), jnp.zeros(2)
    >>> aot_unpaired(pc, pr, zero, zero, beta=0.1)
    Array([0.5981..., 0.5981...], dtype=float32)

    Source: Melnyk et al. 2024, arXiv:2406.05882.
    """
    h_c, h_r = log_ratios(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    check.has_axis("policy_chosen_logps", h_c, "[..., B]")
    quantiles = jnp.sort(h_c, axis=-1) - jnp.sort(h_r, axis=-1)
    return logistic_link(beta * quantiles, label_smoothing=label_smoothing)
