"""Losses of log-ratios h_c and h_r one by one, rather than of their difference: NCA, BCO, SPPO, APO, KTO.

``…_pair`` losses, ``sppo_hard``, ``apo_zero`` and ``apo_down`` take a chosen and a rejected completion; the rest take
single completions with a label, ``desirable``. h = policy - reference, log-probabilities in nats, summed over tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxalign import _checks as check
from jaxalign.losses.pairwise import Logps, log_ratios


def nca_pair(
    policy_chosen_logps: Logps,
    policy_rejected_logps: Logps,
    reference_chosen_logps: Logps,
    reference_rejected_logps: Logps,
    *,
    beta: float,
) -> Logps:
    """Noise contrastive alignment of a pair: -log σ(βh_c) - ½ log σ(-βh_c) - ½ log σ(-βh_r).

    Source: Chen et al. 2024, arXiv:2402.05369, for K = 2 with hard labels.

    Args:
      policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: nats, ``[...]``.
      beta: strength of the pull to the reference.
    Returns:
      loss per pair, ``[...]``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> nca_pair(jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0]), beta=0.1)
    Array([1.3387...], dtype=float32)
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
    """Binary classifier optimisation of a pair: -log σ(βh_c - δ) - log σ(-(βh_r - δ)).

    Source: Jung et al. 2024, arXiv:2404.04656 (δ the reward shift).

    Args:
      policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: nats, ``[...]``.
      beta: strength of the pull to the reference.
      delta: reward shift, a scalar (or ``[...]``), a constant.
    Returns:
      loss per pair, ``[...]``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> bco_pair(jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0]), beta=0.1)
    Array([1.2887...], dtype=float32)
    """
    h_c, h_r = log_ratios(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    delta = _constant("delta", delta, h_c, "policy_chosen_logps")
    return -log_sigmoid(beta * h_c - delta) - log_sigmoid(-(beta * h_r - delta))


def sppo_hard(
    policy_chosen_logps: Logps,
    policy_rejected_logps: Logps,
    reference_chosen_logps: Logps,
    reference_rejected_logps: Logps,
    *,
    beta: float,
) -> Logps:
    """Self-play preference optimisation with hard wins: (h_c - 1/(2β))² + (h_r + 1/(2β))².

    Source: Wu et al. 2024, arXiv:2405.00675, eq. 4.7, with win probability 1 for the chosen and 0 for the rejected.

    Args:
      policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: nats, ``[...]``.
      beta: 1/η of the paper.
    Returns:
      loss per pair, ``[...]``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> sppo_hard(jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0]), beta=0.1)
    Array([32.], dtype=float32)
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
    """Anchored preference optimisation, chosen up and rejected down: 1 - σ(βh_c) + σ(βh_r).

    For data whose chosen completions are better than what the model writes. Source: D'Oosterlinck et al. 2024,
    arXiv:2408.06266, eq. 7 (plus the constant 1).

    Args:
      policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: nats, ``[...]``.
      beta: strength of the pull to the reference.
    Returns:
      loss per pair, ``[...]``, in (0, 2).
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> apo_zero(jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0]), beta=0.1)
    Array([0.9500...], dtype=float32)
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
    """Anchored preference optimisation, chosen down and rejected further down: σ(βh_c) + 1 - σ(βΔ).

    For data whose chosen completions are worse than what the model writes. Source: D'Oosterlinck et al. 2024,
    arXiv:2408.06266, eq. 8 (plus the constant 1).

    Args:
      policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: nats, ``[...]``.
      beta: strength of the pull to the reference.
    Returns:
      loss per pair, ``[...]``, in (0, 2).
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> apo_down(jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0]), beta=0.1)
    Array([0.9751...], dtype=float32)
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
    """Kahneman-Tversky optimisation: w_D (1 - σ(β(h - kl))) where desirable, else w_U (1 - σ(β(kl - h))).

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7. ``kl`` is the batch's reference point, from ``kto_kl``.

    Args:
      policy_logps, reference_logps: nats, ``[...]``.
      desirable: True for a completion to make likelier, ``[...]``.
      kl: reference point in nats, a scalar (or ``[...]``), a constant.
      beta: strength of the pull to the reference.
      desirable_weight, undesirable_weight: λ_D and λ_U, which balance the two classes.
    Returns:
      loss per completion, ``[...]``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> label = jnp.array([True, False])
    >>> kto(jnp.array([-1.0, -4.0]), jnp.array([-2.0, -3.0]), label, jnp.array(0.5), beta=0.1)
    Array([0.4875..., 0.4625...], dtype=float32)
    """
    h, desirable = _labelled(policy_logps, reference_logps, desirable)
    kl = _constant("kl", kl, h)
    return jnp.where(
        desirable, desirable_weight * sigmoid(-beta * (h - kl)), undesirable_weight * sigmoid(beta * (h - kl))
    )


def kto_kl(
    policy_kl_logps: Float[Array, "*B N"],
    reference_kl_logps: Float[Array, "*B N"],
    *,
    mask: Bool[Array, "*B N"] | None = None,
) -> Float[Array, "*B"]:
    """KTO's reference point, max(0, mean(h_kl)), from completions paired with other examples' prompts.

    The mean over the last axis first, then the clamp; no gradient. Source: Ethayarajh et al. 2024, arXiv:2402.01306,
    sec. 4.1. The batch is the whole one: over shards or microbatches, gather the log-probs first.

    Args:
      policy_kl_logps, reference_kl_logps: summed log-probs of mismatched completions, nats, ``[N]`` or ``[..., N]``.
      mask: which of them count; all by default. With none the estimate is 0.
    Returns:
      the estimate in nats, a scalar (or ``[...]``).
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> kto_kl(jnp.array([-1.0, -4.0]), jnp.array([-3.0, -3.0]))
    Array(0.5, dtype=float32)
    """
    policy, reference = check.real(policy_kl_logps=policy_kl_logps, reference_kl_logps=reference_kl_logps)
    check.at_least_axes("policy_kl_logps", policy, 1, "[..., N]")
    h = policy - reference
    mask = jnp.ones(h.shape, bool) if mask is None else check.to_mask("mask", mask, h.shape, "policy_kl_logps")
    mean = jnp.sum(jnp.where(mask, h, 0), axis=-1) / jnp.maximum(jnp.sum(mask, axis=-1), 1).astype(h.dtype)
    return jax.lax.stop_gradient(jnp.maximum(mean, 0))


def apo_zero_unpaired(
    policy_logps: Logps, reference_logps: Logps, desirable: Bool[Array, "*B"], *, beta: float
) -> Logps:
    """``apo_zero`` on labelled completions: 1 - σ(βh) where desirable, else σ(βh).

    Source: D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7, term by term; KTO with its reference point at 0.

    Args:
      policy_logps, reference_logps: nats, ``[...]``.
      desirable: True for a completion to make likelier, ``[...]``.
      beta: strength of the pull to the reference.
    Returns:
      loss per completion, ``[...]``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> label = jnp.array([True, False])
    >>> apo_zero_unpaired(jnp.array([-1.0, -4.0]), jnp.array([-2.0, -3.0]), label, beta=0.1)
    Array([0.4750..., 0.4750...], dtype=float32)
    """
    h, desirable = _labelled(policy_logps, reference_logps, desirable)
    return sigmoid(jnp.where(desirable, -beta * h, beta * h))


def bco(
    policy_logps: Logps, reference_logps: Logps, desirable: Bool[Array, "*B"], delta: Float[Array, ""], *, beta: float
) -> Logps:
    """Binary classifier optimisation: -log σ(βh - δ) where desirable, else -log σ(-(βh - δ)).

    Source: Jung et al. 2024, arXiv:2404.04656. δ is the mean of the average reward βh of desirable and of
    undesirable completions, kept as a running mean.

    Args:
      policy_logps, reference_logps: nats, ``[...]``.
      desirable: True for a completion to make likelier, ``[...]``.
      delta: reward shift, a scalar (or ``[...]``), a constant.
      beta: strength of the pull to the reference.
    Returns:
      loss per completion, ``[...]``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> label = jnp.array([True, False])
    >>> bco(jnp.array([-1.0, -4.0]), jnp.array([-2.0, -3.0]), label, jnp.array(0.0), beta=0.1)
    Array([0.6443..., 0.6443...], dtype=float32)
    """
    h, desirable = _labelled(policy_logps, reference_logps, desirable)
    logits = beta * h - _constant("delta", delta, h)
    return -log_sigmoid(jnp.where(desirable, logits, -logits))


def _labelled(policy_logps: Logps, reference_logps: Logps, desirable: Array) -> tuple[Logps, Array]:
    """(h, desirable), checked, the reference held constant."""
    policy, reference = check.real(policy_logps=policy_logps, reference_logps=reference_logps)
    desirable = check.to_mask("desirable", desirable, policy.shape, "policy_logps")
    return policy - jax.lax.stop_gradient(reference), desirable


def _constant(name: str, value: ArrayLike, h: Logps, like: str = "policy_logps") -> Array:
    """A scalar, or one value per completion, without gradient; in h's type, which a wider scalar must not change."""
    array = check.to_number(name, value)
    check.scalar_or_shape(name, array, h.shape, like)
    return jax.lax.stop_gradient(array).astype(h.dtype)
