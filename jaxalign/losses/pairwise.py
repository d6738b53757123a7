"""Losses of a chosen and a rejected completion against a reference model: DPO and its relatives.

Everywhere h_c = policy_chosen_logps - reference_chosen_logps, h_r likewise for the rejected one, Δ = h_c - h_r, and σ is
the logistic function. Log-probabilities are in nats, summed over the completion's tokens, of any shape ``[...]`` (the
same for all four); the result has that shape and is differentiable with respect to the two policy arguments.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid
from jaxtyping import Array, Float

from jaxalign import _checks as check

Logps = Float[Array, "*B"]


def log_ratios(
    policy_chosen_logps: Logps, policy_rejected_logps: Logps, reference_chosen_logps: Logps, reference_rejected_logps: Logps
) -> tuple[Logps, Logps]:
    """(h_c, h_r), the log-ratios of policy to reference, the reference held constant; checks the four arguments.

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


def logistic_link(logits: Logps, *, label_smoothing: float = 0.0) -> Logps:
    """-(1-e) log σ(x) - e log σ(-x), the cross-entropy of a preference whose label is wrong with probability e.

    (cDPO: Mitchell 2023, https://ericmitchell.ai/cdpo.pdf, eq. 3.)

    Args:
      logits: x, the log-odds that the chosen completion is better, ``[...]``.
      label_smoothing: e.
    Returns:
      the loss, ``[...]``.

    >>> logistic_link(jnp.array([0.0, 2.0]), label_smoothing=0.1).round(4)
    Array([0.6931, 0.3269], dtype=float32)
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
    label_smoothing: float = 0.0,
) -> Logps:
    """Direct preference optimisation: -(1-e) log σ(βΔ) - e log σ(-βΔ).

    Rafailov et al. 2023, arXiv:2305.18290, eq. 7; with e = ``label_smoothing`` > 0 it is cDPO (Mitchell 2023,
    https://ericmitchell.ai/cdpo.pdf, eq. 3).

    Args:
      policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: nats, ``[...]``.
      beta: strength of the pull to the reference.
      label_smoothing: probability that a label is wrong.
    Returns:
      loss per pair, ``[...]``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> dpo(jnp.array([-1.0]), jnp.array([-4.0]), jnp.array([-2.0]), jnp.array([-3.0]), beta=0.1).round(4)
    Array([0.5981], dtype=float32)
    """
    h_c, h_r = log_ratios(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    return logistic_link(beta * (h_c - h_r), label_smoothing=label_smoothing)
