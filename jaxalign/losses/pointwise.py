"""Losses that anchor each log-ratio on its own rather than their difference: NCA, BCO, SPPO, APO, KTO.

``nca_pair``, ``bco_pair``, ``sppo_hard``, ``apo_zero`` and ``apo_down`` take a chosen and a rejected completion. The
others take single completions with a label, ``desirable``. Everywhere h = policy - reference, in nats, summed over a
completion's tokens. Results are differentiable with respect to the policy arguments only.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxalign import _checks as check
from jaxalign.losses.pairwise import Logps, log_ratios
from jaxalign.losses.weighting import masked_mean


def nca_pair(
    policy_chosen_logps: Logps,
    policy_rejected_logps: Logps,
    reference_chosen_logps: Logps,
    reference_rejected_logps: Logps,
    *,
    beta: float,
) -> Logps:
    """Computes noise contrastive alignment (NCA) of a pair.

        -log σ(βh_c) - ½ log σ(-βh_c) - ½ log σ(-βh_r)

    Args:
        policy_chosen_logps: log-probabilities of the chosen completions under the policy, nats, ``[...]``.
        policy_rejected_logps: the same of the rejected completions.
        reference_chosen_logps: log-probabilities of the chosen completions under the reference, nats, ``[...]``.
        reference_rejected_logps: the same of the rejected completions.
        beta: β, strength of the pull to the reference.

    Returns:
        loss per pair, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> nca_pair(jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0]), beta=0.1)
    Array([1.3387...], dtype=float32)

    Source: Chen et al. 2024, arXiv:2402.05369, for K = 2 with hard labels.
    """
    h_c, h_r = log_ratios(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    return -log_sigmoid(beta * h_c) - 0.5 * log_sigmoid(-beta * h_c) - 0.5 * log_sigmoid(-beta * h_r)


def bco_pair(
    policy_chosen_logps: Logps,
    policy_rejected_logps: Logps,
    reference_chosen_logps: Logps,
    reference_rejected_logps: Logps,
    *,
    beta: float,
    delta: ArrayLike = 0.0,
) -> Logps:
    """Computes binary classifier optimisation (BCO) of a pair.

        -log σ(βh_c - δ) - log σ(-(βh_r - δ))

    Args:
        policy_chosen_logps: log-probabilities of the chosen completions under the policy, nats, ``[...]``.
        policy_rejected_logps: the same of the rejected completions.
        reference_chosen_logps: log-probabilities of the chosen completions under the reference, nats, ``[...]``.
        reference_rejected_logps: the same of the rejected completions.
        beta: β, strength of the pull to the reference.
        delta: reward shift δ, a scalar or ``[...]``; held constant.

    Returns:
        loss per pair, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> bco_pair(jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0]), beta=0.1)
    Array([1.2887...], dtype=float32)

    Source: Jung et al. 2024, arXiv:2404.04656.
    """
    h_c, h_r = log_ratios(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    delta = check.to_constant("delta", delta, h_c, "policy_chosen_logps", or_scalar=True)
    return -log_sigmoid(beta * h_c - delta) - log_sigmoid(-(beta * h_r - delta))


def sppo_hard(
    policy_chosen_logps: Logps,
    policy_rejected_logps: Logps,
    reference_chosen_logps: Logps,
    reference_rejected_logps: Logps,
    *,
    beta: float,
) -> Logps:
    """Computes self-play preference optimisation (SPPO) with hard wins.

        (h_c - 1/(2β))² + (h_r + 1/(2β))²

    Args:
        policy_chosen_logps: log-probabilities of the chosen completions under the policy, nats, ``[...]``.
        policy_rejected_logps: the same of the rejected completions.
        reference_chosen_logps: log-probabilities of the chosen completions under the reference, nats, ``[...]``.
        reference_rejected_logps: the same of the rejected completions.
        beta: 1/η of the paper.

    Returns:
        loss per pair, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> sppo_hard(jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0]), beta=0.1)
    Array([32.], dtype=float32)

    Source: Wu et al. 2024, arXiv:2405.00675, eq. 4.7, with win probability 1 for the chosen and 0 for the rejected.
    """
    h_c, h_r = log_ratios(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    return (h_c - 1 / (2 * beta)) ** 2 + (h_r + 1 / (2 * beta)) ** 2


def apo_zero(
    policy_chosen_logps: Logps,
    policy_rejected_logps: Logps,
    reference_chosen_logps: Logps,
    reference_rejected_logps: Logps,
    *,
    beta: float,
) -> Logps:
    """Computes anchored preference optimisation (APO) that raises the chosen and lowers the rejected completion.

        1 - σ(βh_c) + σ(βh_r)

    Use it where chosen completions are better than what the model writes.

    Args:
        policy_chosen_logps: log-probabilities of the chosen completions under the policy, nats, ``[...]``.
        policy_rejected_logps: the same of the rejected completions.
        reference_chosen_logps: log-probabilities of the chosen completions under the reference, nats, ``[...]``.
        reference_rejected_logps: the same of the rejected completions.
        beta: β, strength of the pull to the reference.

    Returns:
        loss per pair, ``[...]``, in (0, 2).

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> apo_zero(jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0]), beta=0.1)
    Array([0.9500...], dtype=float32)

    Source: D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7 (plus the constant 1).
    """
    h_c, h_r = log_ratios(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    return sigmoid(-beta * h_c) + sigmoid(beta * h_r)


def apo_down(
    policy_chosen_logps: Logps,
    policy_rejected_logps: Logps,
    reference_chosen_logps: Logps,
    reference_rejected_logps: Logps,
    *,
    beta: float,
) -> Logps:
    """Computes anchored preference optimisation (APO) that lowers both, the rejected completion more.

        σ(βh_c) + 1 - σ(βΔ)

    Use it where chosen completions are worse than what the model writes.

    Args:
        policy_chosen_logps: log-probabilities of the chosen completions under the policy, nats, ``[...]``.
        policy_rejected_logps: the same of the rejected completions.
        reference_chosen_logps: log-probabilities of the chosen completions under the reference, nats, ``[...]``.
        reference_rejected_logps: the same of the rejected completions.
        beta: β, strength of the pull to the reference.

    Returns:
        loss per pair, ``[...]``, in (0, 2).

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> apo_down(jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0]), beta=0.1)
    Array([0.9751...], dtype=float32)

    Source: D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 8 (plus the constant 1).
    """
    h_c, h_r = log_ratios(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    return sigmoid(beta * h_c) + sigmoid(-beta * (h_c - h_r))


def kto(
    policy_logps: Logps,
    reference_logps: Logps,
    desirable: Bool[Array, "*B"],
    kl: Float[Array, ""],
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Logps:
    """Computes the loss of Kahneman-Tversky optimisation (KTO).

        λ_D (1 - σ(β(h - kl)))  where desirable, else  λ_U (1 - σ(β(kl - h)))

    Args:
        policy_logps: log-probabilities of the completions under the policy, nats, ``[...]``.
        reference_logps: the same under the reference; held constant.
        desirable: True for a completion to make likelier, ``[...]``.
        kl: the batch's reference point from ``kto_kl``, nats, a scalar or ``[...]``; held constant.
        beta: β, strength of the pull to the reference.
        desirable_weight: λ_D, weight of desirable completions.
        undesirable_weight: λ_U, weight of undesirable completions.

    Returns:
        loss per completion, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> label = jnp.array([True, False])
    >>> kto(jnp.array([-1.0, -4.0]), jnp.array([-2.0, -3.0]), label, jnp.array(0.5), beta=0.1)
    Array([0.4875..., 0.4625...], dtype=float32)

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7.
    """
    h, desirable = _labelled(policy_logps, reference_logps, desirable)
    kl = check.to_constant("kl", kl, h, "policy_logps", or_scalar=True)
    x = beta * (h - kl)
    return jnp.where(desirable, desirable_weight * sigmoid(-x), undesirable_weight * sigmoid(x))


def kto_kl(
    policy_kl_logps: Float[Array, "*B N"],
    reference_kl_logps: Float[Array, "*B N"],
    *,
    mask: Bool[Array, "*B N"] | None = None,
) -> Float[Array, "*B"]:
    """Estimates KTO's reference point from completions paired with other examples' prompts.

        max(0, mean(h_kl))

    The mean over the last axis comes first, then the clamp. The result has no gradient. The batch is the whole one:
    gather the log-probabilities of shards or microbatches first.

    Args:
        policy_kl_logps: summed log-probabilities of mismatched completions under the policy, nats, ``[..., N]``.
        reference_kl_logps: the same under the reference.
        mask: True on completions that count, of the same shape; all by default. With none the estimate is 0.

    Returns:
        the estimate in nats, a scalar (or ``[...]``).

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> kto_kl(jnp.array([-1.0, -4.0]), jnp.array([-3.0, -3.0]))
    Array(0.5, dtype=float32)

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, sec. 4.1.
    """
    policy, reference = check.to_floats(policy_kl_logps=policy_kl_logps, reference_kl_logps=reference_kl_logps)
    check.has_axis("policy_kl_logps", policy, "[..., N]")
    h = policy - reference
    mask = jnp.ones(h.shape, bool) if mask is None else check.to_mask("mask", mask, h.shape, "policy_kl_logps")
    return jax.lax.stop_gradient(jnp.maximum(masked_mean(jnp.where(mask, h, 0), mask), 0))


def apo_zero_unpaired(
    policy_logps: Logps, reference_logps: Logps, desirable: Bool[Array, "*B"], *, beta: float
) -> Logps:
    """Computes ``apo_zero`` on labelled single completions.

        1 - σ(βh)  where desirable, else  σ(βh)

    It equals KTO with a reference point of 0.

    Args:
        policy_logps: log-probabilities of the completions under the policy, nats, ``[...]``.
        reference_logps: the same under the reference; held constant.
        desirable: True for a completion to make likelier, ``[...]``.
        beta: β, strength of the pull to the reference.

    Returns:
        loss per completion, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> label = jnp.array([True, False])
    >>> apo_zero_unpaired(jnp.array([-1.0, -4.0]), jnp.array([-2.0, -3.0]), label, beta=0.1)
    Array([0.4750..., 0.4750...], dtype=float32)

    Source: D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7, term by term.
    """
    h, desirable = _labelled(policy_logps, reference_logps, desirable)
    return sigmoid(jnp.where(desirable, -beta * h, beta * h))


def bco(
    policy_logps: Logps, reference_logps: Logps, desirable: Bool[Array, "*B"], delta: Float[Array, ""], *, beta: float
) -> Logps:
    """Computes binary classifier optimisation (BCO) on labelled single completions.

        -log σ(βh - δ)  where desirable, else  -log σ(-(βh - δ))

    δ is the mean of two averages of the reward βh, over desirable and over undesirable completions. Keep it as a
    running mean.

    Args:
        policy_logps: log-probabilities of the completions under the policy, nats, ``[...]``.
        reference_logps: the same under the reference; held constant.
        desirable: True for a completion to make likelier, ``[...]``.
        delta: reward shift δ, a scalar or ``[...]``; held constant.
        beta: β, strength of the pull to the reference.

    Returns:
        loss per completion, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> label = jnp.array([True, False])
    >>> bco(jnp.array([-1.0, -4.0]), jnp.array([-2.0, -3.0]), label, jnp.array(0.0), beta=0.1)
    Array([0.6443..., 0.6443...], dtype=float32)

    Source: Jung et al. 2024, arXiv:2404.04656.
    """
    h, desirable = _labelled(policy_logps, reference_logps, desirable)
    logits = beta * h - check.to_constant("delta", delta, h, "policy_logps", or_scalar=True)
    return -log_sigmoid(jnp.where(desirable, logits, -logits))


def _labelled(policy_logps: Logps, reference_logps: Logps, desirable: Array) -> tuple[Logps, Array]:
    """Checks the arguments and returns (h, desirable), with the reference held constant."""
    policy, reference = check.to_floats(policy_logps=policy_logps, reference_logps=reference_logps)
    desirable = check.to_mask("desirable", desirable, policy.shape, "policy_logps")
    return policy - jax.lax.stop_gradient(reference), desirable
