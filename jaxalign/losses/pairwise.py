"""Losses of a chosen and a rejected completion against a reference model: DPO and its relatives.

Everywhere h_c = policy_chosen_logps - reference_chosen_logps, h_r likewise for the rejected one, Δ = h_c - h_r, and σ
is the logistic function. Log-probabilities are in nats, summed over the completion's tokens, all four of one shape
``[...]``; the result has that shape and is differentiable with respect to the two policy arguments.

Losses of Δ, but for ``ipo`` on its averages, take a ``divergence``: a function of ``jaxalign.losses.divergences``
applied to h_c and h_r first, so that Δ = f'(exp h_c) - f'(exp h_r). The default, reverse KL, is the identity.
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
    """(h_c, h_r), log-ratios of policy to reference with the reference held constant; checks the four arguments.

    >>> log_ratios(jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0]))
    (Array([1.], dtype=float32), Array([-1.], dtype=float32))
    """
    pc, pr, rc, rr = check.real(
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        reference_chosen_logps=reference_chosen_logps,
        reference_rejected_logps=reference_rejected_logps,
    )
    return pc - jax.lax.stop_gradient(rc), pr - jax.lax.stop_gradient(rr)


def logistic_link(logits: Logps, *, label_smoothing: float | Logps = 0.0) -> Logps:
    """Cross-entropy of a preference whose label is wrong with probability e: -(1-e) log σ(x) - e log σ(-x).

    Source: Mitchell 2023, https://ericmitchell.ai/cdpo.pdf, eq. 3.

    Args:
      logits: x, the log-odds that the chosen completion is the better one, ``[...]``.
      label_smoothing: e, one number or one per example.
    Returns:
      the loss, ``[...]``.

    >>> logistic_link(jnp.array([0.0, 2.0]), label_smoothing=0.1)
    Array([0.6931... , 0.3269...], dtype=float32)
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
    """Direct preference optimisation: -(1-e) log σ(βΔ) - e log σ(-βΔ); log 2 where policy = reference.

    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7. With e = ``label_smoothing`` > 0 it is cDPO (Mitchell 2023,
    https://ericmitchell.ai/cdpo.pdf, eq. 3), with another ``divergence`` f-DPO (Wang et al. 2023, arXiv:2309.16240).

    Args:
      policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: nats, ``[...]``.
      beta: strength of the pull to the reference.
      label_smoothing: probability that a label is wrong: one number, or one per pair (a judge's soft labels).
      divergence: f' of the divergence that holds the policy to the reference, a function of the log-ratio.
    Returns:
      loss per pair, ``[...]``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> dpo(jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0]), beta=0.1)
    Array([0.5981...], dtype=float32)
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
    """DPO, unbiased under labels flipped with probability e: [-(1-e) log σ(βΔ) + e log σ(-βΔ)] / (1-2e).

    Source: Ray Chowdhury et al. 2024, arXiv:2403.00409.

    Args:
      policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: nats, ``[...]``.
      beta: strength of the pull to the reference.
      label_smoothing: e, probability that a label is flipped, in [0, ½).
      divergence: as in ``dpo``.
    Returns:
      loss per pair, ``[...]``; it may be negative.
    Raises:
      TypeError, ValueError: for a wrong type or shape, or e outside [0, ½), naming the argument.

    >>> pc, pr, rc, rr = jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0])
    >>> robust_dpo(pc, pr, rc, rr, beta=0.1, label_smoothing=0.1)
    Array([0.5731...], dtype=float32)
    """
    check.within("label_smoothing", label_smoothing, 0, 0.5)
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
    """Identity preference optimisation: (Δ - 1/(2β))².

    Source: Azar et al. 2023, arXiv:2310.12036, eq. 17 (τ there is β here). Give it log-probs *averaged* over each
    completion's tokens, as the authors did in their experiments; on sums the loss grows with length.

    Args:
      policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: nats per token,
        ``[...]``.
      beta: strength of the pull to the reference; the margin is driven to 1/(2β).
    Returns:
      loss per pair, ``[...]``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> ipo(jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0]), beta=0.1)
    Array([9.], dtype=float32)
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
    """SLiC's hinge, normalised by the reference: max(0, 1 - βΔ).

    Source: Liu et al. 2023 (RSO), arXiv:2309.06657, after SLiC-HF, Zhao et al. 2023, arXiv:2305.10425, eq. 1.

    Args:
      policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: nats, ``[...]``.
      beta: 1/β is the margin Δ beyond which a pair no longer teaches.
      divergence: as in ``dpo``.
    Returns:
      loss per pair, ``[...]``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> hinge(jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0]), beta=0.1)
    Array([0.8], dtype=float32)
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
    """Efficient exact optimisation, reverse KL over a pair: σ(βΔ)[log σ(βΔ) - log(1-e)] + σ(-βΔ)[log σ(-βΔ) - log e].

    Source: Ji et al. 2024, arXiv:2402.00856, eq. 16.

    Args:
      policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: nats, ``[...]``.
      beta: strength of the pull to the reference.
      label_smoothing: e, in (0, 1): the target probability of the rejected completion.
      divergence: as in ``dpo``.
    Returns:
      loss per pair, ``[...]``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, or e outside (0, 1), naming the argument.

    >>> pc, pr, rc, rr = jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0])
    >>> exo_pair(pc, pr, rc, rr, beta=0.1, label_smoothing=0.1)
    Array([0.4063...], dtype=float32)
    """
    check.within("label_smoothing", label_smoothing, 0, 1, open_low=True)
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
    """DiscoPOP, log-ratio modulated: (1-m)(-log σ(βΔ)) + m exp(-βΔ), m = σ(βΔ/τ).

    Source: Lu et al. 2024, arXiv:2406.08414, eq. 5.

    Args:
      policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: nats, ``[...]``.
      beta: strength of the pull to the reference.
      tau: temperature of the blend.
      divergence: as in ``dpo``.
    Returns:
      loss per pair, ``[...]``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> discopop(jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0]), beta=0.1)
    Array([0.8147...], dtype=float32)
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
    """Alignment via optimal transport, paired data: logistic_link(β [sort(pc - pr) - sort(rc - rr)]).

    The policy's margins are made to dominate the reference's stochastically, quantile by quantile. Source: Melnyk et
    al. 2024, arXiv:2406.05882. The sort is over the last axis, the batch: values couple, and the i-th value
    belongs to the i-th quantile, not to the i-th pair.

    Args:
      policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: nats, ``[..., B]``.
      beta: strength of the pull to the reference.
      label_smoothing: as in ``dpo``.
    Returns:
      loss per quantile, ``[..., B]``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> pc, pr, zero = jnp.array([-1.0, -2.0]), jnp.array([-4.0, -3.0]), jnp.zeros(2)
    >>> aot(pc, pr, zero, zero, beta=0.1)
    Array([0.6443..., 0.5543...], dtype=float32)
    """
    pc, pr, rc, rr = _batches(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    quantiles = jnp.sort(pc - pr, axis=-1) - jnp.sort(rc - rr, axis=-1)
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
    """Alignment via optimal transport, unpaired data: logistic_link(β [sort(h_c) - sort(h_r)]).

    Source: Melnyk et al. 2024, arXiv:2406.05882. The sort is over the last axis, as in ``aot``.

    Args:
      policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: nats, ``[..., B]``;
        chosen and rejected need not share prompts.
      beta: strength of the pull to the reference.
      label_smoothing: as in ``dpo``.
    Returns:
      loss per quantile, ``[..., B]``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> pc, pr, zero = jnp.array([-1.0, -2.0]), jnp.array([-4.0, -3.0]), jnp.zeros(2)
    >>> aot_unpaired(pc, pr, zero, zero, beta=0.1)
    Array([0.5981..., 0.5981...], dtype=float32)
    """
    pc, pr, rc, rr = _batches(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    quantiles = jnp.sort(pc - rc, axis=-1) - jnp.sort(pr - rr, axis=-1)
    return logistic_link(beta * quantiles, label_smoothing=label_smoothing)


def _batches(pc: Logps, pr: Logps, rc: Logps, rr: Logps) -> list[Array]:
    """The four arguments, checked to have a batch axis, the reference held constant."""
    arrays = check.real(
        policy_chosen_logps=pc, policy_rejected_logps=pr, reference_chosen_logps=rc, reference_rejected_logps=rr
    )
    check.at_least_axes("policy_chosen_logps", arrays[0], 1, "[..., B]")
    return arrays[:2] + [jax.lax.stop_gradient(array) for array in arrays[2:]]
